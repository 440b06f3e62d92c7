"""Rules about single rows of the validation set."""

from __future__ import annotations

import math

import numpy as np

from tunesmith.diagnosis import series as stats
from tunesmith.diagnosis.history import Floats
from tunesmith.diagnosis.limits import LIMITS
from tunesmith.diagnosis.rules.said import finding
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import Change, Finding

#: Rows of which two groups can be told from chance; of 32, one of a few files of sound answers seemed to have two.
_ENOUGH_ROWS = 50


def inconsistent_answers(view: View) -> Finding | None:
    """The validation rows fall into two groups, of which one is learnt and the other is not: its answers contradict the others."""
    rows = view.history.rows
    if rows is None or len(rows.steps) < 2 or len(rows.lines) < _ENOUGH_ROWS or view.progress < LIMITS.learnt:
        return None
    last_R, base_R = rows.loss_ER[-1], rows.loss_ER[0]
    explained, odd_R = stats.two_groups(last_R)
    share = float(odd_R.mean())
    if explained < LIMITS.two_groups or not LIMITS.odd_rows <= share <= 1 - LIMITS.odd_rows:
        return None
    odd, others = float(np.median(last_R[odd_R])), float(np.median(last_R[~odd_R]))
    if odd < LIMITS.group_ratio * others:
        return None
    worst = [rows.lines[i] for i in np.argsort(-last_R)[:20] if odd_R[i]]
    numbers = {
        "share_of_rows": share, "their_median_loss": odd, "median_loss_of_others": others, "variance_explained": explained,
        "their_median_base_loss": float(np.median(base_R[odd_R])), "validation_lines": worst,
    }  # fmt: skip
    seen = f"{share:.0%} of the validation rows end with a loss of about {odd:.3g}, the others with {others:.3g}, and hardly any between"
    if _are_of_another_kind(rows.num_targets_R, odd_R):
        return finding(
            "inconsistent_answers", "info", 0.4, None, numbers,
            f"{seen}. Their answers are also of another length: rows of another kind, it seems, which may just be harder.",
            "Look at some of either group; if they are two tasks, evaluate each for itself.",
        )  # fmt: skip
    return finding(
        "inconsistent_answers", "warning", 0.75, None, numbers,
        f"{seen}: the answers of the first do not follow from their prompts as the others' do.",
        "Look at these rows, and at the training rows of highest loss (score_training_rows): correct their answers or leave them out.",
        Change("training_data", "as it is", "without wrong answers", f"{share:.0%} of the validation rows contradict the rest"),
    )  # fmt: skip


def _are_of_another_kind(num_targets_R: Floats, odd_R: stats.Flags) -> bool:
    """Say whether the answers of the two groups are of different lengths, by more than a standard deviation."""
    length_R = np.log(num_targets_R)
    spread = math.sqrt((length_R[odd_R].var() + length_R[~odd_R].var()) / 2)
    return abs(float(length_R[odd_R].mean() - length_R[~odd_R].mean())) > max(spread, 0.1)
