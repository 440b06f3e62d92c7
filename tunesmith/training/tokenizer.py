"""Load the tokenizer that belongs to a base. Needs no torch; transformers loads it if it can be found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from tunesmith.errors import InvalidRequest

#: A model directory is data: nothing in it is run, nothing is fetched.
PLAIN: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer in a base's directory. Raises: InvalidRequest."""
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, **PLAIN)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidRequest(f"Base model {directory.name!r}: its tokenizer cannot be loaded: {' '.join(str(error).split())}") from error
