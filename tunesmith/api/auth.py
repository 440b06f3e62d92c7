"""Who may speak: the API key, or the browser's cookie that a one-use login token is traded for.

Default deny: `Guard` stands before the router, so a path needs the key unless it is in PUBLIC, whether it exists or not.
Only digests of the key are kept, on disk and in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tunesmith.errors import AuthenticationFailed, InvalidRequest, PermissionDenied
from tunesmith.settings import Settings

#: The only (method, path) pairs that answer without a key.
PUBLIC = frozenset({("GET", "/healthz"), ("GET", "/login"), ("POST", "/login")})
COOKIE = "tunesmith-session"
SESSION_SECONDS = 30 * 24 * 3600
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_MAX_LOGIN_TOKENS = 16
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """The API key. `plain` is there only when the key was just made, to be shown once."""

    digest: bytes
    plain: str | None = field(default=None, repr=False)


def load_or_make_key(settings: Settings) -> Key:
    """Return the key of the settings, else the one made at an earlier start, else a new one.

    Raises: InvalidRequest for a blank key or a damaged key file.
    """
    if settings.api_key is not None:
        if not settings.api_key.strip():
            words = "Setting 'api_key' (environment TUNESMITH_API_KEY) is blank. Hint: unset it to have a key made."
            raise InvalidRequest(words, param="api_key")
        return Key(_digest(settings.api_key.encode()))
    plain = "sk-tunesmith-" + secrets.token_urlsafe(32)
    digest = _digest(plain.encode())
    kept = _kept(settings.data_dir / "api_key.sha256", digest)
    return Key(digest, plain) if kept == digest else Key(kept)


def load_or_make_secret(settings: Settings) -> bytes:
    """Return what sessions are signed with; it outlives the server, so that a browser stays logged in over a restart.

    Raises: InvalidRequest for a damaged file.
    """
    return _kept(settings.data_dir / "session_secret", secrets.token_bytes(32))


def _kept(path: Path, new: bytes) -> bytes:
    """Return the 32 bytes kept at `path`, which are `new` if there were none."""
    if _write_new(path, new.hex()):
        return new
    text = path.read_text().strip()
    if not _DIGEST.fullmatch(text):
        raise InvalidRequest(f"{path} is damaged: it should hold 64 hexadecimal digits. Hint: delete it to have a new one made.")
    return bytes.fromhex(text)


def _write_new(path: Path, text: str) -> bool:
    """Write a file that is not there yet, whole or not at all; return False when it is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    with open(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temp, path)
    except FileExistsError:
        return False
    finally:
        temp.unlink()
    return True


class Access:
    """Decides whether a credential is good. A new key ends all sessions; so does deleting the secret they are signed with."""

    def __init__(self, key: Key, secret: bytes) -> None:
        self._key = key.digest
        self._secret = hmac.digest(secret, key.digest, "sha256")
        self._tokens: deque[bytes] = deque(maxlen=_MAX_LOGIN_TOKENS)

    def accepts_key(self, key: bytes) -> bool:
        """Say whether `key` is the API key, in time that does not depend on where it differs."""
        return hmac.compare_digest(_digest(key), self._key)

    def mint_login(self) -> str:
        """Return a new token that opens one session; at most the last 16 are good."""
        token = secrets.token_urlsafe(32)
        self._tokens.append(_digest(token.encode()))
        return token

    def redeem(self, token: str) -> str:
        """Trade a login token for a session cookie's value.

        Raises: AuthenticationFailed when it is not ours or was used before.
        """
        digest = _digest(token.encode())
        if not any(hmac.compare_digest(digest, known) for known in tuple(self._tokens)):
            raise AuthenticationFailed("This login link is not valid or was used before. Hint: a start of the server prints a new one.")
        self._tokens.remove(digest)
        return self.open_session()

    def open_session(self) -> str:
        """Return a new session cookie's value."""
        expires = str(int(time.time()) + SESSION_SECONDS)
        return f"{expires}.{self._sign(expires)}"

    def accepts_session(self, value: str) -> bool:
        """Say whether `value` is a session cookie of ours that has not expired."""
        expires, _, signature = value.partition(".")
        good = hmac.compare_digest(signature.encode(), self._sign(expires).encode())
        return good and expires.isdigit() and time.time() < int(expires)

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


class Guard:
    """Let a request pass that has the key or a session, or goes to one of the PUBLIC routes."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"], scope["path"]) not in PUBLIC:
            headers = Headers(scope=scope)
            try:
                self._check(scope["method"], scope["scheme"], headers)
            except AuthenticationFailed:
                if scope["method"] != "GET" or "text/html" not in headers.get("accept", "") or "authorization" in headers:
                    raise
                await _to_login(scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, method: str, scheme: str, headers: Headers) -> None:
        if "authorization" in headers:
            kind, _, key = headers["authorization"].partition(" ")
            if kind.lower() != "bearer" or not key:
                raise AuthenticationFailed("The Authorization header is not 'Bearer YOUR_KEY', the only form accepted.")
            if not self._access.accepts_key(key.encode("latin-1")):
                raise AuthenticationFailed(
                    f"Incorrect API key provided: {_masked(key)}. You can find your API key where the server was first started: "
                    "it was printed there, unless TUNESMITH_API_KEY set it."
                )
            return
        if not self._access.accepts_session(cookie_parser(headers.get("cookie", "")).get(COOKIE, "")):
            raise AuthenticationFailed(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
                "(i.e. Authorization: Bearer YOUR_KEY), or open the login link that the server printed."
            )
        if method not in _SAFE_METHODS and not _same_origin(scheme, headers):
            raise PermissionDenied(
                "With a session cookie, only this server's own pages may change something (same origin). Hint: use the key."
            )


def _to_login(scope: Scope) -> RedirectResponse:
    """Send a person's browser to where it can log in and come back from."""
    here = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
    return RedirectResponse(f"/login?next={quote(here, safe='')}", status_code=303)


def _same_origin(scheme: str, headers: Headers) -> bool:
    if "origin" in headers:
        return headers["origin"] == f"{scheme}://{headers.get('host', '')}"
    return headers.get("sec-fetch-site") == "same-origin"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _masked(key: str) -> str:
    """Show enough of a wrong key to tell which it is, and never much of it."""
    return f"{key[:3]}***{key[-4:]}" if len(key) >= 16 else "*" * len(key[:8])
