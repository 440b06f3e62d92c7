"""Base models on disk: which may be used, where they are, what they are. Reads headers and JSON only, never weights.

A base is a catalogue name, a local directory or a Hub id; the latter two must be in the allowed list, because a base
is code and data that its publisher wrote. Weights are safetensors; pickles and repositories with Python code are refused.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.domain import models
from tunesmith.errors import InvalidRequest, ModelNotFound

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib", ".npy")
_MAX_HEADER = 100 * 2**20


@dataclass(frozen=True)
class Base:
    """A base that may be used. `directory` is where it is, or will be once prepared."""

    name: str
    kind: Literal["catalogue", "directory", "hub"]
    directory: Path

    @property
    def ready(self) -> bool:
        """Whether the directory is complete: config and weights, written by one rename."""
        return (self.directory / "config.json").is_file() and any(self.directory.glob("*.safetensors"))


def describe(name: str, cache_dir: Path, allowed: Sequence[str]) -> Base:
    """Return the base called `name`.

    Raises: ModelNotFound for a name that is neither in the catalogue nor allowed; InvalidRequest for one that two have.
    """
    if name in models.CATALOGUE:
        return Base(name, "catalogue", cache_dir / "bases" / name)
    directories = {Path(entry) for entry in allowed if Path(entry).is_absolute()}
    called = sorted(str(directory) for directory in directories if directory.name == Path(name).name)
    if len(called) > 1 and name in (*called, Path(name).name):
        words = f"Two allowed models are called {Path(name).name!r}: {' and '.join(called)}. Hint: rename one of the directories."
        raise InvalidRequest(words, param="model")
    if called and name in (called[0], Path(name).name):
        return Base(Path(name).name, "directory", Path(called[0]))
    if name in allowed:
        return Base(name, "hub", cache_dir / "bases" / name.replace("/", "--"))
    raise ModelNotFound(name, f"Bases here: {', '.join(names(allowed))}. Others need the setting allowed_models.")


def names(allowed: Sequence[str]) -> list[str]:
    """Return the names of all bases that may be used."""
    return [*models.CATALOGUE, *(Path(entry).name if Path(entry).is_absolute() else entry for entry in allowed)]


def check(directory: Path) -> None:
    """Refuse a directory that is not a plain safetensors model.

    Raises: InvalidRequest naming the file or key that is the trouble and what is accepted.
    """
    config = _config(directory)
    if "auto_map" in config:
        raise _refused(directory, "config.json has 'auto_map', i.e. wants to run code of its own; this is never done.")
    names_here = sorted(path.name for path in directory.iterdir())
    if code := [name for name in names_here if name.endswith(".py")]:
        raise _refused(directory, f"it contains Python code ({code[0]}); only safetensors, JSON and text files are accepted.")
    if not any(name.endswith(".safetensors") for name in names_here):
        pickles = [name for name in names_here if name.endswith(_PICKLES)]
        found = f"only {pickles[0]}, a pickle" if pickles else "none"
        raise _refused(directory, f"no *.safetensors weights (found {found}). Hint: convert it with save_pretrained().")


def facts(directory: Path) -> models.ModelFacts:
    """Return size and limits of a prepared base, from config.json and the safetensors headers.

    Raises: InvalidRequest for a damaged header or a config without its essentials.
    """
    config = _config(directory)
    text = config.get("text_config", config)
    has_template = (directory / "chat_template.jinja").is_file() or "chat_template" in _json(directory / "tokenizer_config.json")
    shapes = [shape for path in _weights(directory) for shape in _shapes(path)]
    return models.ModelFacts(
        architecture=next(iter(config.get("architectures") or [config.get("model_type", "unknown")])),
        num_parameters=sum(map(math.prod, shapes)),
        max_length=_max_length(directory, text),
        has_chat_template=has_template,
        width=sum(map(sum, (shape for shape in shapes if len(shape) == 2 and text.get("vocab_size") not in shape))),
    )


def _weights(directory: Path) -> list[Path]:
    """Return the files that hold the model; a checkpoint of full tuning has the optimizer's beside them."""
    return sorted(directory.glob("model*.safetensors")) or sorted(directory.glob("*.safetensors"))


def _refused(directory: Path, words: str) -> InvalidRequest:
    return InvalidRequest(f"Base model {directory.name!r}: {words}", param="model")


def _config(directory: Path) -> dict[str, Any]:
    if not (directory / "config.json").is_file():
        raise _refused(directory, "no config.json in its directory. Hint: it must be a Hugging Face model directory.")
    return _json(directory / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise _refused(path.parent, f"{path.name} is not valid JSON ({error}).") from error
    return data if isinstance(data, dict) else {}


def _max_length(directory: Path, config: dict[str, Any]) -> int:
    """Return the longest context; architectures name it differently, and those without a limit do not name it."""
    length = next((config[key] for key in ("max_position_embeddings", "n_positions", "max_seq_len") if config.get(key)), 2048)
    if not isinstance(length, int):
        raise _refused(directory, f"config.json gives {length!r} as its longest context; expected an integer.")
    return length


def _shapes(path: Path) -> list[list[int]]:
    """Return the shapes that a safetensors file's header announces (8 bytes length, then JSON)."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 2 <= length <= min(_MAX_HEADER, path.stat().st_size):
            raise _refused(path.parent, f"{path.name} is not a whole safetensors file (header of {length} bytes).")
        header = file.read(length)
    try:
        shapes = [tensor["shape"] for name, tensor in json.loads(header).items() if name != "__metadata__"]
        if not all(isinstance(size, int) for shape in shapes for size in shape):
            raise TypeError("a shape is not of integers")
        return shapes
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(path.parent, f"{path.name} is not a whole safetensors file (its header cannot be read: {error}).") from error
