"""Load the tokenizer that belongs to a base. Needs no torch; transformers loads it where it can be found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from tunesmith.errors import InvalidRequest

#: A model directory is data: nothing in it is run, nothing is fetched.
PLAIN: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer in a base's directory. Raises: InvalidRequest."""
    try:
        # AutoTokenizer would come to the same class, after half a second over the names of all models that there are.
        kind = TokenizersBackend if _class_name(directory) == TokenizersBackend.__name__ else transformers.AutoTokenizer
        return kind.from_pretrained(directory, **PLAIN)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidRequest(f"Base model {directory.name!r}: its tokenizer cannot be loaded: {' '.join(str(error).split())}") from error


def _class_name(directory: Path) -> object:
    path = directory / "tokenizer_config.json"
    return json.loads(path.read_bytes()).get("tokenizer_class") if path.is_file() else None
