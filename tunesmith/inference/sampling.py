"""From a model's numbers to the next token: penalties, temperature, top_p, log-probabilities. Knows no model.

Shape letters: V vocabulary, C candidates.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.errors import TunesmithError
from tunesmith.inference.requests import Sampling

_LOWEST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON cannot carry


@dataclass(frozen=True)
class Token:
    """A token, and where asked for its log-probability and the likeliest at its place, before temperature and penalties."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def draw(logits_V: Tensor, sampling: Sampling, counts: Counter[int], random: np.random.Generator) -> int:
    """Return the next token id; `counts` says how often each was drawn before.

    Penalties and bias as OpenAI defines them; then temperature (0: the likeliest token), then top_p (Holtzman et al., 2020).
    Raises: TunesmithError when the model computed no numbers.
    """
    logits_V = _adjusted(logits_V, sampling, counts)
    highest, likeliest = logits_V.max(dim=-1)  # NaN counts as the highest
    if bool(highest.isnan()):
        raise _nonsense()
    if sampling.temperature == 0 or sampling.top_p == 0:
        return int(likeliest)
    # Less the highest first: what a tiny temperature divides must not overflow.
    probs_C = torch.softmax((logits_V.double() - highest) / sampling.temperature, dim=-1)
    ids_C: Tensor | None = None
    if sampling.top_p < 1:
        # What is left out here has less than 1 - top_p together: top_p is reached without it, and sorting all would take milliseconds.
        ids_C = (probs_C >= (1 - sampling.top_p) / len(probs_C)).nonzero()[:, 0]
        probs_C, order_C = probs_C[ids_C].sort(descending=True, stable=True)
        kept = int((probs_C.cumsum(0) < sampling.top_p).sum()) + 1
        probs_C, ids_C = probs_C[:kept], ids_C[order_C]
    cumulative_C = probs_C.cumsum(0)
    # Scaled by the sum, so that rounding cannot leave a gap at the end.
    place = int(torch.searchsorted(cumulative_C, float(random.random()) * float(cumulative_C[-1]), right=True))
    place = min(place, len(cumulative_C) - 1)
    return place if ids_C is None else int(ids_C[place])


def measured(id: int, logits_V: Tensor, num_top: int) -> Token:
    """Return a token with its log-probability and the `num_top` likeliest, of the model's own distribution.

    Raises: TunesmithError when the model computed no numbers.
    """
    logprobs_V = torch.log_softmax(_wide(logits_V), dim=-1).clamp(min=_LOWEST_LOGPROB)
    if bool(logprobs_V[id].isnan()):
        raise _nonsense()
    values, ids = logprobs_V.topk(min(num_top, len(logprobs_V)))
    return Token(id, float(logprobs_V[id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _adjusted(logits_V: Tensor, sampling: Sampling, counts: Counter[int]) -> Tensor:
    penalized = counts if sampling.presence_penalty or sampling.frequency_penalty else {}
    if not penalized and not sampling.logit_bias:
        return logits_V
    logits_V = _wide(logits_V).clone()
    if penalized:
        times = torch.tensor(list(penalized.values()), dtype=logits_V.dtype)
        logits_V[list(penalized)] -= times * sampling.frequency_penalty + sampling.presence_penalty
    for id, bias in sampling.logit_bias.items():
        logits_V[id] += bias
    return logits_V


def _wide(logits_V: Tensor) -> Tensor:
    return logits_V.to(torch.promote_types(logits_V.dtype, torch.float32))


def _nonsense() -> TunesmithError:
    return TunesmithError("The model computed something that is not a number (NaN). Hint: its weights may be damaged.")
