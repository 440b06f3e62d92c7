"""Train with TRL's SFTTrainer and PEFT as they ship; only what the comparison fixes is set."""

from __future__ import annotations

import argparse
import tempfile

import measure
import torch
from datasets import Dataset
from peft import LoraConfig
from trainer_steps import Steps
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Train and report."""
    parser = measure.parser()
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--autocast", action="store_true", help="bf16=True.")
    parser.add_argument("--recompute", action="store_true", help="Gradient checkpointing.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = measure.Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(arguments, folder)
        trainer.add_callback(Steps(clock))
        trainer.train()
    if arguments.adapter:
        trainer.save_model(str(arguments.adapter))
    settings = {"weights": arguments.weights, "bf16": arguments.autocast, "gradient_checkpointing": arguments.recompute}
    measure.report(clock, arguments, settings, ("trl", "transformers", "peft", "accelerate"))


def _trainer(arguments: argparse.Namespace, folder: str) -> SFTTrainer:
    pairs = [measure.messages_and_answer(row) for row in measure.rows(arguments.data)]
    config = SFTConfig(
        output_dir=folder,
        use_cpu=True,
        seed=arguments.seed,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=arguments.batch,
        gradient_accumulation_steps=measure.ROWS_PER_STEP // arguments.batch,
        max_steps=arguments.steps,
        max_length=measure.MAX_LENGTH,
        learning_rate=measure.LEARNING_RATE,
        bf16=arguments.autocast,
        gradient_checkpointing=arguments.recompute,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.weights)),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt, "completion": answer} for prompt, answer in pairs]),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        peft_config=LoraConfig(
            r=measure.RANK,
            lora_alpha=measure.ALPHA,
            lora_dropout=arguments.dropout,
            target_modules=measure.LINEAR_LAYERS,
            task_type="CAUSAL_LM",
        ),
    )


if __name__ == "__main__":
    main()
