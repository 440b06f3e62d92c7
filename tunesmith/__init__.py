"""Fine-tune language models on your own machines.

    import tunesmith

    run = tunesmith.train("train.jsonl", valid="valid.jsonl", n_epochs=3, base_learning_rate="auto", learning_rate_multiplier=1.0)
    run.metrics[-1]["train_loss"]            # the figures of every step
    run.plot()                               # loss and token accuracy
    run.chat("Where is my parcel?")          # ask the tuned model
    tunesmith.Run("runs/20260101-120000")    # any run folder, later

The same engine stands behind `tunesmith serve`, which speaks OpenAI's fine-tuning API.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.errors import TunesmithError
    from tunesmith.run import Run, train

__version__ = "0.1.0"
__all__ = ["Run", "TunesmithError", "train"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import tunesmith` stays quick."""
    if name in __all__:
        return getattr(importlib.import_module("tunesmith.errors" if name == "TunesmithError" else "tunesmith.run"), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
