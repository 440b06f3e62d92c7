"""Identifiers in OpenAI's shapes. They are labels made here; nothing a client sends becomes one."""

from __future__ import annotations

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits

JOB = "ftjob-"
EVENT = "ftevent-"
CHECKPOINT = "ftckpt_"
FILE = "file-"
CHAT_COMPLETION = "chatcmpl-"
COMPLETION = "cmpl-"
REQUEST = "req_"
WORKER = "worker-"


def new(prefix: str, length: int = 24) -> str:
    """Return `prefix` and `length` random letters and digits (24 carry 142 bits)."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))
