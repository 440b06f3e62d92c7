"""What the runners of the generation benchmark share: their arguments, what they are asked, and the JSON line they end with."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

#: Continues all prompts by so many tokens, greedily; returns each one's new tokens and the seconds until its first.
Answer = Callable[[list[list[int]], int], tuple[list[list[int]], list[float]]]


def main(load: Callable[[Path], Answer]) -> None:
    """Load a model, warm it up, ask it one prompt and then all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON: the token ids of each.")
    parser.add_argument("--tokens", type=int, required=True, help="New tokens of each.")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    answer = load(arguments.model)
    prompts = json.loads(arguments.prompts.read_text())
    answer(prompts[:1], 4)
    _, alone = answer(prompts[:1], 1)
    started = time.perf_counter()
    written, first = answer(prompts, arguments.tokens)
    figures: dict[str, Any] = {"seconds": time.perf_counter() - started, "first_alone": alone[0], "first": first, "written": written}
    print(json.dumps({**figures, "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
