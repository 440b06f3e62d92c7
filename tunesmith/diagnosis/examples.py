"""Single rows worth a look: those the model does worst on, and those it does worse on than before training."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunesmith.diagnosis.history import History, Rows

#: Most rows of each kind that are named.
LISTED = 10
#: A row got worse than the base model if its loss rose by this share and by this many nats per token.
_WORSE_SHARE, _WORSE_NATS = 0.1, 0.05


def worth_a_look(history: History) -> dict[str, Any]:
    """Return the worst validation rows, those worse than under the base model and how many, and the worst training rows.

    Each is {"line", "loss", "base_loss", "target_tokens"}, losses in nats per target token; what was not scored has no key.
    """
    said: dict[str, Any] = {}
    rows = history.rows
    if rows is not None and len(rows.steps) and rows.steps[-1] > 0:
        said["worst_validation"] = _named(rows, np.argsort(-rows.loss_ER[-1])[:LISTED])
        if rows.steps[0] == 0:
            base_R, last_R = rows.loss_ER[0], rows.loss_ER[-1]
            worse_R = (last_R > (1 + _WORSE_SHARE) * base_R) & (last_R > base_R + _WORSE_NATS)
            by_much = np.argsort(base_R - last_R)
            said["worse_than_base"] = _named(rows, by_much[worse_R[by_much]][:LISTED])
            said["num_worse_than_base"], said["num_validation"] = int(worse_R.sum()), len(rows.lines)
    if history.training_rows is not None:
        said["worst_training"] = _named(history.training_rows, np.argsort(-history.training_rows.loss_ER[-1])[:LISTED])
    return said


def _named(rows: Rows, which: np.ndarray) -> list[dict[str, Any]]:
    has_base = rows.steps[0] == 0 and len(rows.steps) > 1
    return [
        {"line": int(rows.lines[i]), "loss": round(float(rows.loss_ER[-1, i]), 4)}
        | ({"base_loss": round(float(rows.loss_ER[0, i]), 4)} if has_base else {})
        | {"target_tokens": int(rows.num_targets_R[i])}
        for i in which
    ]
