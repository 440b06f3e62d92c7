"""The parameters of OpenAI's generation endpoints: which are obeyed, which are refused, which change nothing here.

The values of those that are obeyed are checked by `inference.requests`, for whoever answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.api import errors
from tunesmith.errors import InvalidRequest
from tunesmith.inference import requests
from tunesmith.inference.backend import Endpoint

CHAT: Endpoint = "/v1/chat/completions"
COMPLETIONS: Endpoint = "/v1/completions"

_BOTH = {
    "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "model", "n", "presence_penalty",
    "seed", "stop", "stream", "stream_options", "temperature", "top_p",
}  # fmt: skip

#: Checked and sent on. Where only some values of one can be obeyed, the others are refused.
OBEYED: Mapping[Endpoint, frozenset[str]] = {
    CHAT: frozenset(_BOTH | {
        "audio", "function_call", "functions", "max_completion_tokens", "messages", "modalities",
        "response_format", "tool_choice", "tools", "top_logprobs", "web_search_options",
    }),
    COMPLETIONS: frozenset(_BOTH | {"best_of", "echo", "prompt", "suffix"}),
}  # fmt: skip

#: They say who pays, what is kept or how fast it should go; the text is the same without them.
IGNORED: Mapping[Endpoint, frozenset[str]] = {
    CHAT: frozenset({
        "metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "safety_identifier", "service_tier", "store", "user",
    }),
    COMPLETIONS: frozenset({"user"}),
}  # fmt: skip

#: They would change the text and are not implemented: name -> the values that ask for what happens anyway.
REFUSED: Mapping[Endpoint, Mapping[str, tuple[Any, ...]]] = {
    CHAT: {
        "moderation": (None,),
        "parallel_tool_calls": (None, True),
        "reasoning_effort": (None, "none"),
        "verbosity": (None, "medium"),
    },
    COMPLETIONS: {},
}


def check(endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the backend is to be sent of `body`.

    Raises: InvalidRequest naming the parameter that is unknown, wrong or not supported.
    """
    obeyed, ignored, refused = OBEYED[endpoint], IGNORED[endpoint], REFUSED[endpoint]
    for name, value in body.items():
        if name in refused and value not in refused[name]:
            accepted = " or ".join("null" if choice is None else repr(choice) for choice in refused[name])
            raise InvalidRequest(
                f"'{name}' with value {errors.shown(value)} is not supported by this server. Accepted: {accepted}.", param=name
            )
        if name not in obeyed and name not in ignored and name not in refused:
            raise errors.unknown(name)
    forwarded = {name: value for name, value in body.items() if name in obeyed and value is not None}
    if "model" not in forwarded:
        raise errors.missing("model")
    if not isinstance(forwarded["model"], str):
        words = f"Invalid type for 'model': expected a string, but got {errors.shown(forwarded['model'])} instead."
        raise InvalidRequest(words, param="model", code="invalid_type")
    if "stream_options" in forwarded and not forwarded.get("stream"):
        raise InvalidRequest("'stream_options' is only accepted when 'stream' is true.", param="stream_options")
    if {"max_tokens", "max_completion_tokens"} <= forwarded.keys():
        words = "'max_tokens' and 'max_completion_tokens' are both given. Hint: give only 'max_completion_tokens'."
        raise InvalidRequest(words, param="max_tokens")
    requests.parse(endpoint, forwarded)
    return forwarded
