"""From a history to a diagnosis: all rules, what contradicts a graver finding left out, a verdict, a checkpoint, the next run."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.diagnosis import advice, checkpoint, examples, words
from tunesmith.diagnosis.history import History
from tunesmith.diagnosis.limits import LIMITS
from tunesmith.diagnosis.rules import RULES
from tunesmith.diagnosis.view import View
from tunesmith.domain.findings import DATA_CODES, SEVERITIES, Diagnosis, Finding, ordered

#: What a finding explains already, so that it is not said again in other words.
_EXPLAINS: dict[str, set[str]] = {
    "non_finite": {"divergence", "slow_learning", "overfitting", "over_confidence", "still_improving", "no_learning", "plateau"},
    "divergence": {"slow_learning", "overfitting", "over_confidence", "still_improving", "no_learning", "plateau", "memorization",
                   "inconsistent_answers", "noisy_training"},
    "slow_learning": {"still_improving", "no_learning", "plateau", "inconsistent_answers", "noisy_training"},
    "overfitting": {"memorization", "still_improving", "metric_conflict"},
    "over_confidence": {"memorization", "still_improving", "metric_conflict"},
    "too_little_data": {"overfitting", "over_confidence", "memorization", "still_improving", "low_variety"},
    "pipeline_fault": {"divergence", "slow_learning", "no_learning", "noisy_training"},
    "no_learning": {"plateau", "converged", "still_improving", "overfitting", "over_confidence"},
    "suspiciously_perfect": {"constant_metric", "memorization"},
    "constant_metric": {"pipeline_fault", "no_learning", "plateau", "converged"},
    "noisy_training": {"still_improving"},
    "still_improving": {"converged", "plateau"},
    "plateau": {"converged"},
    "noisy_validation": {"overfitting", "over_confidence", "plateau", "converged", "still_improving", "no_learning"},
    "leakage": {"overfitting", "over_confidence", "memorization", "suspiciously_perfect"},
}  # fmt: skip


def diagnose(history: History) -> Diagnosis:
    """Say what happened, why, and what to do next."""
    view = View(history)
    found = [finding for rule in RULES if (finding := rule(view)) is not None]
    findings = settled([*found, *history.data_findings])
    verdict = _verdict(view, findings)
    return Diagnosis(
        verdict=verdict,
        findings=tuple(findings),
        checkpoint=checkpoint.choose(view, findings),
        next_hyperparameters=advice.next_hyperparameters(history, findings),
        plots=words.plots(view, verdict),
        reading=words.reading(view, findings),
        rows=examples.worth_a_look(history),
        cannot_tell=tuple(_cannot_tell(view)),
    )


def settled(found: Sequence[Finding]) -> list[Finding]:
    """Return findings in order of gravity, each code once, without those that another one, at least as grave, explains."""
    once: dict[str, Finding] = {}
    for finding in ordered(list(found)):
        once.setdefault(finding.code, finding)
    gravity = SEVERITIES.index
    return [
        finding
        for finding in once.values()
        if not any(
            finding.code in _EXPLAINS.get(other.code, ()) and gravity(other.severity) <= gravity(finding.severity)
            for other in once.values()
        )
    ]


def _verdict(view: View, findings: Sequence[Finding]) -> str:
    grave = [finding for finding in findings if finding.severity != "info"]
    if grave:
        first = grave[0].message
        more = len(grave) - 1
        return first + (f" And {more} more finding{'s' if more > 1 else ''}." if more else "")
    name, metric = view.metric
    loss = view.loss.values
    if not len(view.train) and not len(loss) and not len(metric):
        return "Nothing can be said yet: no step has been made."
    score = f", {words.called(name)} from {metric.values[0]:.3g} to {metric.values[-1]:.3g}" if name else ""
    if not len(loss):  # without scores too, `no_validation` would have been said
        return f"There is no loss to judge by{score.replace(',', ';')} in {len(metric)} points."
    went = f"the validation loss went from {loss[0]:.3g} to {loss[-1]:.3g}{score}"
    if len(loss) < LIMITS.few_points:
        worse = f", after {loss.min():.3g} in between" if loss[-1] > (1 + LIMITS.rise) * loss.min() else ""
        return f"Cannot tell whether it overfits or has converged, of {len(loss)} validation points: {went}{worse}."
    if view.rise > LIMITS.rise:
        return f"Nothing is shown to be wrong, but {went}, {view.rise:.0%} above its least, which may be noise."
    noted = next((finding.message for finding in findings if finding.code == "still_improving"), "")
    return f"The run {'is sound' if view.history.finished else 'is going well'}: {went}. {noted}".strip()


def _cannot_tell(view: View) -> list[str]:
    """Say what these curves leave open."""
    history = view.history
    said = ["Whether the answers are good for their purpose: loss and token accuracy compare with the reference answers word by word."]
    if not len(view.loss):
        said.append("Anything about new data: there is no validation set.")
    elif not view.is_full:
        known = history.hyperparameters.get("eval_samples")
        rows = f"only {known} validation rows were evaluated each time" if known else "the evaluations may be of a few rows each"
        said.append(f"Small differences: {rows}.")
    if history.rows is None:
        said.append("Which rows are learnt and which are not: no losses of single rows were kept.")
    if not any(finding.code in DATA_CODES for finding in history.data_findings) and history.num_training is None:
        said.append("Whether validation rows are also in the training data: the data itself was not seen.")
    if advice.rate_ratio(history) is None:
        said.append("Whether the learning rate suits the model: the model is not known.")
    return said
