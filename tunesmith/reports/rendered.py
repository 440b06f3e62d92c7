"""`python -m tunesmith.reports.rendered ORDER`: some of a training file's rows as a model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.domain import datasets
from tunesmith.errors import InvalidRequest
from tunesmith.reports import child
from tunesmith.training.data import Renderer


def render(order: Mapping[str, Any]) -> None:
    """Render the lines `first` to `last` of the file `training`, the first of them at byte `start`, with the tokenizer in `base`."""
    renderer = Renderer(child.tokenizer(Path(order["base"])))
    with Path(order["training"]).open("rb") as file:
        file.seek(order["start"])
        rows = [_row(renderer, number, file.readline(), order["max_length"]) for number in range(order["first"], order["last"] + 1)]
    child.say(data=rows)


def _row(renderer: Renderer, number: int, line: bytes, max_length: int) -> dict[str, Any]:
    row = {"line": number, "spans": [], "num_tokens": 0, "num_targets": 0, "truncated": False, "error": None}
    if wrong := datasets.inspect([line], 1, number).errors:
        return row | {"error": wrong[0][1]}
    try:
        (tokenized,) = map(renderer.tokenize, datasets.read([line], number))
    except InvalidRequest as error:
        return row | {"error": error.message}
    is_target_T = tokenized.is_target_T[:max_length]
    return row | {
        "spans": _spans(renderer.tokenizer, tokenized.ids_T[:max_length].tolist(), is_target_T.tolist()),
        "num_tokens": len(tokenized), "num_targets": int(is_target_T.sum()), "truncated": len(tokenized) > max_length,
    }  # fmt: skip


def _spans(tokenizer: Any, ids: list[int], is_target: list[bool]) -> list[dict[str, Any]]:
    spans, start, before = [], 0, ""
    for end in [*(np.flatnonzero(np.diff(is_target)) + 1).tolist(), len(ids)]:
        # From the beginning each time: some tokenizers write a token otherwise where it is the first.
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        spans.append({"text": text[len(before) :], "is_target": is_target[start], "tokens": end - start})
        start, before = end, text
    return spans


if __name__ == "__main__":
    child.obey(render)
