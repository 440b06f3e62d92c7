"""Train with LitGPT's LoRA recipe: its model, loop and optimizer; the rows in SmolLM2's own template and in our order."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import measure
import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data.base import DataModule, SFTDataset, get_sft_collate_fn
from litgpt.finetune import lora
from litgpt.prompts import Default
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from torch.utils.data import DataLoader, SequentialSampler

CLOCK = measure.Clock()
MODEL_NAME = "SmolLM2-135M-Instruct"


class ClockedAdamW(torch.optim.AdamW):
    """AdamW that ends the clock's step; LitGPT is given it by name."""

    def step(self, closure: Any = None) -> Any:
        """Update, then note the time."""
        result = super().step(closure)
        CLOCK.step()
        return result


class ClockedRows(SequentialSampler):
    """Rows in the file's order; the clock starts when training asks for the first."""

    def __iter__(self) -> Iterator[int]:
        if not CLOCK.seconds:
            CLOCK.start()
        return super().__iter__()


class Rows(DataModule):
    """The rows as prompt and answer, rendered by the model's own template."""

    def __init__(self, path: Path, template: str, batch: int) -> None:
        super().__init__()
        self.path, self.template, self.batch = path, jinja2.Template(template), batch
        self.prompt_style = Default()

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None, **_: Any) -> None:
        """Tokenize; LitGPT calls this first."""
        pairs = [measure.messages_and_answer(row) for row in measure.rows(self.path)]
        data = [
            {"instruction": self.template.render(messages=prompt, add_generation_prompt=True), "output": answer[0]["content"]}
            for prompt, answer in pairs
        ]
        self.rows = SFTDataset(data, tokenizer, self.prompt_style, max_seq_length or -1, mask_prompt=True)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the rows in order."""
        return DataLoader(self.rows, self.batch, sampler=ClockedRows(self.rows), collate_fn=get_sft_collate_fn())

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the first row: LitGPT insists on looking at some before it trains."""
        return DataLoader(torch.utils.data.Subset(self.rows, [0]), 1, collate_fn=get_sft_collate_fn())


def main() -> None:
    """Train and report."""
    parser = measure.parser()
    parser.add_argument("--precision", default="bf16-true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # What follows training: the first would count into the peak memory, the second reads its own command line.
    lora.merge_lora = lora.save_hyperparameters = lambda *_, **__: None
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / MODEL_NAME
        shutil.copytree(arguments.model, checkpoint)
        convert_hf_checkpoint(checkpoint, model_name=MODEL_NAME)
        _train(arguments, checkpoint, Path(folder) / "out")
        CLOCK.losses += _losses(Path(folder) / "out", arguments.batch)
    measure.report(CLOCK, arguments, {"precision": arguments.precision}, ("litgpt", "lightning"))


def _train(arguments: Any, checkpoint: Path, out: Path) -> None:
    lora.setup(
        checkpoint_dir=checkpoint,
        out_dir=out,
        precision=arguments.precision,
        lora_r=measure.RANK,
        lora_alpha=measure.ALPHA,
        lora_dropout=arguments.dropout,
        lora_query=True, lora_key=True, lora_value=True, lora_projection=True, lora_mlp=True,
        data=Rows(arguments.data, (checkpoint / "chat_template.jinja").read_text(), arguments.batch),
        train=TrainArgs(
            save_interval=None, log_interval=1, global_batch_size=measure.ROWS_PER_STEP, micro_batch_size=arguments.batch,
            lr_warmup_steps=1, epochs=1000, max_steps=arguments.steps, max_seq_length=measure.MAX_LENGTH,
        ),
        eval=EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1, final_validation=False),
        optimizer={"class_path": "__main__.ClockedAdamW", "init_args": {"lr": measure.LEARNING_RATE, "weight_decay": 0.0}},
        seed=arguments.seed,
    )  # fmt: skip


def _losses(out: Path, rows: int) -> list[float]:
    """Return each step's mean over its micro-batches' means of `rows` rows, from LitGPT's own log of micro-batches."""
    with next(out.rglob("metrics.csv")).open() as file:
        lines = [line for line in csv.DictReader(file) if line["loss"]]
    return [float(line["loss"]) for line in lines if float(line["iter"]) * rows % measure.ROWS_PER_STEP == 0]


if __name__ == "__main__":
    main()
