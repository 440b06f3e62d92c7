"""Answer one prompt after the other with transformers' `generate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import answering
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from tunesmith import hardware


class Times(BaseStreamer):
    """When each of `generate`'s pieces came; the prompt is the first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Hear the end."""


def load(directory: Path) -> answering.Answer:
    """Return the library's way to answer, in the type that Tunesmith takes on this machine."""
    dtype = torch.bfloat16 if hardware.native_bfloat16() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()

    def answer(prompts: list[list[int]], tokens: int) -> tuple[list[list[int]], list[float]]:
        started, written, first = time.perf_counter(), [], []
        for prompt in prompts:
            ids_1T, times = torch.tensor([prompt]), Times()
            asked = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "streamer": times}
            output = model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), **asked)
            written.append(output[0, len(prompt) :].tolist())
            first.append(times.times[1] - started)
        return written, first

    return answer


if __name__ == "__main__":
    answering.main(load)
