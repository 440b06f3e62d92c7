"""Train with LLaMA-Factory's LoRA fine-tuning as its configuration file would; the rows in our order."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import measure
import torch

# LLaMA-Factory imports it always and uses it for sound only; its wheel fits CUDA's torch only.
sound = types.ModuleType("torchaudio")
sound.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
sys.modules["torchaudio"] = sound

from llamafactory.train.tuner import run_exp  # noqa: E402
from trainer_steps import Steps  # noqa: E402

TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def main() -> None:
    """Train and report."""
    arguments = measure.parser().parse_args()
    torch.set_num_threads(arguments.threads)
    clock = measure.Clock()
    with tempfile.TemporaryDirectory() as folder:
        dataset = {"file_name": str(arguments.data), "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": TAGS}
        (Path(folder) / "dataset_info.json").write_text(json.dumps({"rows": dataset}))
        run_exp(_configuration(arguments, folder), [Steps(clock)])
    measure.report(clock, arguments, {"bf16": True}, ("llamafactory", "transformers", "peft", "trl"))


def _configuration(arguments: Any, folder: str) -> dict[str, Any]:
    return {
        "stage": "sft", "do_train": True, "finetuning_type": "lora", "use_cpu": True, "bf16": True, "seed": arguments.seed,
        "model_name_or_path": str(arguments.model), "template": "smollm2", "default_system": SYSTEM,
        "dataset_dir": folder, "dataset": "rows", "cutoff_len": measure.MAX_LENGTH, "disable_shuffling": True,
        "lora_rank": measure.RANK, "lora_alpha": measure.ALPHA, "lora_dropout": arguments.dropout, "lora_target": "all",
        "per_device_train_batch_size": arguments.batch, "gradient_accumulation_steps": measure.ROWS_PER_STEP // arguments.batch,
        "learning_rate": measure.LEARNING_RATE, "max_steps": arguments.steps, "logging_steps": 1,
        "output_dir": f"{folder}/out", "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


if __name__ == "__main__":
    main()
