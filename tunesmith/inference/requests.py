"""What may be asked of a model: OpenAI's request fields, checked once. Knows no model, no HTTP and no torch.

A field that would change the answer and is not served here is refused; one that would not is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.domain import datasets
from tunesmith.errors import InvalidRequest

MAX_CHOICES = 128
MAX_STOPS = 4
MAX_PROMPTS = 128
_MAX_TOP_LOGPROBS = 20
_COMPLETION_MAX_TOKENS = 16  # OpenAI's default on the legacy endpoint
_SEED_BITS = 63

#: Fields that are accepted only in a form that changes nothing: name -> that form's test and its words.
REFUSED_CHAT: Mapping[str, tuple[Any, str]] = {
    "audio": ((None,), "null"),
    "function_call": ((None, "auto", "none"), "'auto' or 'none'"),
    "functions": ((None, []), "null; use 'tools'"),
    "modalities": ((None, ["text"]), "['text']"),
    "web_search_options": ((None,), "null"),
}
REFUSED_COMPLETION: Mapping[str, tuple[Any, str]] = {"suffix": ((None, ""), "null")}


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `top_logprobs` None: no log-probabilities; 0: those of the drawn tokens only."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Request:
    """What both endpoints have in common. `stop` are texts that end an answer and are not part of it."""

    sampling: Sampling
    n: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False


@dataclass(frozen=True)
class ChatRequest(Request):
    """A conversation that is to be continued. `parse_calls`: tool calls in the answer become `tool_calls`."""

    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    parse_calls: bool = False


@dataclass(frozen=True)
class CompletionRequest(Request):
    """Prompts that are to be continued, as text or as token ids."""

    prompts: tuple[str | Sequence[int], ...] = ()
    echo: bool = False


def parse(path: str, body: Mapping[str, Any]) -> ChatRequest | CompletionRequest:
    """Check the body of a request to the endpoint `path`.

    Raises: InvalidRequest naming the field, its value and what is accepted.
    """
    return parse_completion(body) if path == "/v1/completions" else parse_chat(body)


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """Check the body of a chat completion request."""
    _refuse(body, REFUSED_CHAT)
    _check_response_format(body.get("response_format"))
    tools, choice = _tools(body.get("tools")), body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise _invalid("tool_choice", choice, "'auto' or 'none'; answers are not constrained here")
    want_logprobs, top = _bool(body, "logprobs"), _integer(body, "top_logprobs", 0, _MAX_TOP_LOGPROBS)
    if top is not None and not want_logprobs:
        raise InvalidRequest(f"'top_logprobs' is {top}, which needs 'logprobs' to be true.", param="top_logprobs")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return ChatRequest(
        **_common(body, _integer(body, limit, 1, None), (top or 0) if want_logprobs else None),
        messages=_messages(body.get("messages")),
        tools=() if choice == "none" else tools,
        parse_calls=bool(tools) and choice != "none",
    )


def parse_completion(body: Mapping[str, Any]) -> CompletionRequest:
    """Check the body of a legacy completion request."""
    _refuse(body, REFUSED_COMPLETION)
    n = _integer(body, "n", 1, MAX_CHOICES) or 1
    if body.get("best_of") not in (None, n):
        raise _invalid("best_of", body["best_of"], f"null or the same as 'n' ({n})")
    max_tokens = _integer(body, "max_tokens", 0, None)
    top = _integer(body, "logprobs", 0, _MAX_TOP_LOGPROBS)
    return CompletionRequest(
        **_common(body, _COMPLETION_MAX_TOKENS if max_tokens is None else max_tokens, top),
        prompts=_prompts(body.get("prompt")),
        echo=_bool(body, "echo"),
    )


def _common(body: Mapping[str, Any], max_tokens: int | None, top_logprobs: int | None) -> dict[str, Any]:
    options = body.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise _invalid("stream_options", options, "an object")
    sampling = Sampling(
        temperature=_number(body, "temperature", 0, 2, 1.0),
        top_p=_number(body, "top_p", 0, 1, 1.0),
        max_tokens=max_tokens,
        seed=_integer(body, "seed", -(2**_SEED_BITS), 2**_SEED_BITS - 1),
        presence_penalty=_number(body, "presence_penalty", -2, 2, 0.0),
        frequency_penalty=_number(body, "frequency_penalty", -2, 2, 0.0),
        logit_bias=_logit_bias(body.get("logit_bias")),
        top_logprobs=top_logprobs,
    )
    return {
        "sampling": sampling,
        "n": _integer(body, "n", 1, MAX_CHOICES) or 1,
        "stop": _stop(body.get("stop")),
        "stream": _bool(body, "stream"),
        "include_usage": bool((options or {}).get("include_usage")),
    }


def _invalid(param: str, value: Any, accepted: str) -> InvalidRequest:
    shown = repr(value)
    return InvalidRequest(f"Invalid value for '{param}': {shown[:200]}. Expected {accepted}.", param=param)


def _refuse(body: Mapping[str, Any], refused: Mapping[str, tuple[Any, str]]) -> None:
    for name, (harmless, accepted) in refused.items():
        if body.get(name) not in harmless:
            raise _invalid(name, body[name], f"{accepted} (anything else is not supported here)")


def _check_response_format(format: Any) -> None:
    if format is None or (isinstance(format, Mapping) and format.get("type") == "text"):
        return
    raise _invalid("response_format", format, "null or {'type': 'text'}; answers are not constrained here. Hint: ask for JSON in a message")


def _bool(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _invalid(name, value, "true or false")
    return bool(value)


def _number(body: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise _invalid(name, value, f"a number >= {low:g} and <= {high:g}")
    return float(value)


def _integer(body: Mapping[str, Any], name: str, low: int, high: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise _invalid(name, value, f"an integer >= {low}" + ("" if high is None else f" and <= {high}"))
    return value


def _stop(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(stop, str) for stop in stops):
        raise _invalid("stop", value, f"a string or a list of at most {MAX_STOPS} strings")
    return tuple(stop for stop in stops if stop)


def _logit_bias(value: Any) -> dict[int, float]:
    problem = _invalid("logit_bias", value, "an object of token id -> number from -100 to 100")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise problem
    biases = {}
    for token, bias in value.items():
        number = isinstance(bias, (int, float)) and not isinstance(bias, bool) and math.isfinite(bias) and abs(bias) <= 100
        if not number or not str(token).isdecimal():
            raise problem
        biases[int(token)] = float(bias)
    return biases


def _messages(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise _invalid("messages", value, "a list of at least one message")
    for position, message in enumerate(value):
        _check_message(message, f"messages[{position}]")
    return tuple(value)


def _check_message(message: Any, param: str) -> None:
    if not isinstance(message, Mapping):
        raise _invalid(param, message, "an object with 'role' and 'content'")
    role = message.get("role")
    if role not in datasets.ROLES:
        raise _invalid(f"{param}.role", role, f"one of {', '.join(datasets.ROLES)}")
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    functions = [call.get("function", call) if isinstance(call, Mapping) else None for call in calls] if isinstance(calls, list) else [None]
    for function in functions:
        if not (isinstance(function, Mapping) and isinstance(function.get("name"), str) and isinstance(function.get("arguments"), str)):
            raise _invalid(f"{param}.tool_calls", calls, "calls with a function's 'name' and 'arguments', both strings")
    content = message.get("content")
    if content is None and role == "assistant" and (calls or message.get("refusal")):
        return
    if isinstance(content, list):
        for part in content:
            if not (isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise _invalid(f"{param}.content", part, 'text parts only: {"type": "text", "text": "..."}')
    elif not isinstance(content, str):
        raise _invalid(f"{param}.content", content, "a string or a list of text parts")


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _invalid("tools", value, "a list of tools")
    for position, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _invalid(f"tools[{position}]", tool, '{"type": "function", "function": {"name": "...", ...}}')
    return tuple(value)


def _prompts(value: Any) -> tuple[str | Sequence[int], ...]:
    """Return the prompts of OpenAI's four forms: a text, texts, token ids, lists of token ids."""
    prompts = [value] if isinstance(value, str) or _is_ids(value) else value
    if not isinstance(prompts, list) or not 0 < len(prompts) <= MAX_PROMPTS or not all(isinstance(p, str) or _is_ids(p) for p in prompts):
        raise _invalid("prompt", value, f"a string, a list of token ids, or a list of at most {MAX_PROMPTS} of either")
    return tuple(prompts)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value)
