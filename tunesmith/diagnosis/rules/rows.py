"""Rules about single rows of the validation set."""

from __future__ import annotations

import numpy as np

from tunesmith.diagnosis.limits import LIMITS
from tunesmith.diagnosis.rules.said import finding
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import Change, Finding


def inconsistent_answers(view: View) -> Finding | None:
    """Some validation rows stay far worse than all others: their answers do not follow from their prompts as the others' do."""
    rows = view.history.rows
    if rows is None or len(rows.steps) < 2 or len(rows.lines) < 24:
        return None
    last_R, base_R = rows.loss_ER[-1], rows.loss_ER[0]
    median = float(np.median(last_R))
    spread = 1.4826 * float(np.median(np.abs(last_R - median)))
    odd_R = last_R > median + max(5 * spread, 0.5 * median)
    share = float(odd_R.mean())
    if share < LIMITS.odd_rows:
        return None
    worst = [rows.lines[i] for i in np.argsort(-last_R)[:20] if odd_R[i]]
    numbers = {
        "share_of_rows": share, "median_loss": median, "their_median_loss": float(np.median(last_R[odd_R])),
        "their_median_base_loss": float(np.median(base_R[odd_R])), "validation_lines": worst,
    }  # fmt: skip
    reason = f"{share:.0%} of the validation rows have answers that the others contradict"
    return finding(
        "inconsistent_answers", "warning", 0.8, None, numbers,
        f"{share:.0%} of the validation rows end with a loss of {numbers['their_median_loss']:.3g} where the others have {median:.3g}: "
        "their answers do not follow from their prompts as the others' do.",
        "Look at these rows, and at the training rows of highest loss: correct their answers or leave them out.",
        Change("training_data", "as it is", "without rows whose answers are wrong", reason),
    )  # fmt: skip
