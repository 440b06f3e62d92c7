"""The neutral judge: the held-out loss of PEFT adapters, by transformers and PEFT in float32, row by row. Prints one JSON line."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import measure
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

Row = tuple[torch.Tensor, int]


def main() -> None:
    """Evaluate the base and each adapter."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    held_out = [_tokenize(tokenizer, row) for row in measure.rows(arguments.data)]
    losses = [_loss(_load(arguments.model), held_out)]
    losses += [_loss(PeftModel.from_pretrained(_load(arguments.model), adapter), held_out) for adapter in arguments.adapters]
    print(json.dumps({"base": losses[0], "adapters": losses[1:]}))


def _load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def _tokenize(tokenizer: Any, row: dict[str, Any]) -> Row:
    """Return the tokens [1, T] up to the answer's end-of-turn and how many of them are its prompt."""
    prompt, answer = measure.messages_and_answer(row)
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    answered = tokenizer(answer[0]["content"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return torch.tensor([ids + answered]), len(ids)


@torch.no_grad()
def _loss(model: Any, held_out: list[Row]) -> float:
    """Return the mean negative log-likelihood of the answers' tokens."""
    model.eval()
    total = []
    for ids_1T, start in held_out:
        logprobs_TV = model(input_ids=ids_1T).logits[0].log_softmax(-1)
        total += (-logprobs_TV[start - 1 : -1].gather(1, ids_1T[0, start:, None])).flatten().tolist()
    return math.fsum(total) / len(total)


if __name__ == "__main__":
    main()
