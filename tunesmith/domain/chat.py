"""Bring a conversation into the form every chat template understands. The same for training and inference.

Knows no template engine and no tokenizer. Templates differ in what they accept: text parts, the developer role, tool
calls. What a template does not know is put into words it does, in the format of the Hermes function-calling models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: For models that come without a chat template.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

_TOOLS_HEADER = "You may call these functions, described as JSON inside <tools></tools>:\n<tools>\n"
_TOOLS_FOOTER = (
    "\n</tools>\nTo call one, answer with its name and arguments as JSON inside <tool_call></tool_call>:\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
)


def text(content: Any) -> str:
    """Return the text of a message's content: a string, a list of text parts, or null."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def normalize(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], template: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Return messages and tools as `template` (its source) can render them.

    Every message then has string content and role system, user, assistant or tool. Where the template never mentions
    tools, they become part of the system message and tool calls part of the content.
    """
    native = "tool_calls" in template and "tools" in template
    plain = [_message(message, native) for message in messages]
    if not tools or native:
        return plain, [dict(tool) for tool in tools] or None
    listing = _TOOLS_HEADER + "\n".join(json.dumps(dict(tool), ensure_ascii=False) for tool in tools) + _TOOLS_FOOTER
    if plain and plain[0]["role"] == "system":
        plain[0] = plain[0] | {"content": plain[0]["content"] + "\n\n" + listing}
    else:
        plain.insert(0, {"role": "system", "content": listing})
    return plain, None


def calls(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the functions an assistant message calls; the deprecated `function_call` counts as one."""
    if message.get("tool_calls"):
        return [call.get("function", call) for call in message["tool_calls"]]
    return [message["function_call"]] if message.get("function_call") else []


def _message(message: Mapping[str, Any], native: bool) -> dict[str, Any]:
    role = {"developer": "system", "function": "tool"}.get(message["role"], message["role"])
    plain: dict[str, Any] = {"role": role, "content": text(message.get("content")) or (message.get("refusal") or "")}
    functions = calls(message)
    if native:
        if functions:
            plain["tool_calls"] = [{"type": "function", "function": _call(function)} for function in functions]
        plain |= {key: message[key] for key in ("name", "tool_call_id") if message.get(key)}
    elif functions:
        blocks = [f"<tool_call>\n{json.dumps(_call(function), ensure_ascii=False)}\n</tool_call>" for function in functions]
        plain["content"] = "\n".join([plain["content"], *blocks] if plain["content"] else blocks)
    return plain


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return name and arguments, the latter as an object where they are valid JSON."""
    arguments: Any = function["arguments"]
    try:
        arguments = json.loads(arguments)
    except (ValueError, RecursionError):
        pass
    return {"name": function["name"], "arguments": arguments}
