"""Dropout masks: the right rate, independent where they must be, and a function of nothing but what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tunesmith.training import batching, data, dropout
from tunesmith.training.kernels import Drop

TOKENS = st.lists(st.integers(0, 200_000), min_size=1, max_size=40)


def hashes(ids: list[int]) -> Tensor:
    return torch.from_numpy(dropout.prefix_hashes(np.array(ids, dtype=np.int64)))


def keep(
    ids: list[int], *, probability: float = 0.25, seed: int = 1, step: int = 1, layer: int = 0, features: int = 64
) -> Tensor:  # bool [T, F]
    masks = dropout.Masks(probability, seed)
    masks.begin(step, hashes(ids))
    return kept(masks.drop(layer, features))


def kept(drop: Drop | None) -> Tensor:
    assert drop is not None
    return drop.row_T[:, None] * drop.column_I >= drop.threshold


SEQUENCE = list(range(1000, 1500))


@pytest.mark.parametrize("probability", [0.01, 0.05, 0.1, 0.5, 0.9])
def test_the_rate(probability: float) -> None:
    """Over all positions and features, and for each feature alone, the share dropped is p within five standard errors."""
    dropped = ~keep(SEQUENCE * 4, probability=probability, features=512)
    total = dropped.numel()
    assert abs(float(dropped.float().mean()) - probability) < 5 * (probability * (1 - probability) / total) ** 0.5
    by_feature = dropped.float().mean(0)
    error = (probability * (1 - probability) / len(dropped)) ** 0.5
    assert float((by_feature - probability).abs().max()) < 5 * error
    assert 0.8 * error < float(by_feature.std()) < 1.2 * error  # and it varies as chance does, neither more nor less
    by_position = dropped.float().mean(1)
    assert float(by_position.std()) == pytest.approx((probability * (1 - probability) / 512) ** 0.5, rel=0.25)


def test_the_scale_and_no_dropout() -> None:
    masks = dropout.Masks(0.25, 1)
    assert masks.drop(0, 64) is None  # before a step begins: evaluation
    masks.begin(1, hashes(SEQUENCE))
    assert masks.gain == 1 / 0.75
    assert float(kept(masks.drop(0, 64)).float().mean() * masks.gain) == pytest.approx(1, abs=0.02)
    masks.off()
    assert masks.drop(0, 64) is None
    nothing = dropout.Masks(0.0, 1)
    nothing.begin(1, hashes(SEQUENCE))
    assert nothing.drop(0, 64) is None and nothing.gain == 1


def agreement(a: Tensor, b: Tensor) -> float:
    """Return the correlation of two masks, in standard errors of independent ones."""
    x, y = (m.double().flatten() - m.double().mean() for m in (a, b))
    return float((x * y).sum() / (x.norm() * y.norm())) * x.numel() ** 0.5


@pytest.mark.parametrize(
    "other", [{"step": 2}, {"seed": 2}, {"layer": 1}, {"step": 1000}, {"seed": 2**31 - 1}, {"layer": 200}, {"seed": 0, "step": 2}]
)
def test_step_seed_and_layer_each_draw_anew(other: dict[str, int]) -> None:
    assert torch.equal(keep(SEQUENCE), keep(SEQUENCE))
    assert not torch.equal(keep(SEQUENCE), keep(SEQUENCE, **other))
    assert abs(agreement(keep(SEQUENCE), keep(SEQUENCE, **other))) < 5


def test_features_and_positions_are_independent() -> None:
    """All pairs of features, and all pairs of positions, correlate as independent ones would (chi-square)."""
    mask = keep(SEQUENCE * 4, features=64).double()  # [2000, 64]
    for samples in (mask, keep(SEQUENCE[:64], features=4096).double().T):
        count, variables = samples.shape
        correlation = torch.corrcoef(samples.T)
        pairs = correlation[torch.triu_indices(variables, variables, 1).unbind()]
        chi_square = float((pairs**2).sum()) * count  # its mean is the number of pairs, its variance twice that
        assert abs(chi_square - len(pairs)) < 6 * (2 * len(pairs)) ** 0.5
        assert float(pairs.abs().max()) * count**0.5 < 6


def test_the_same_word_in_another_place_has_another_mask() -> None:
    mask = keep([7] * 200)
    assert len({tuple(row.tolist()) for row in mask}) == 200


@settings(max_examples=100, deadline=None)
@given(TOKENS, TOKENS, TOKENS)
def test_a_mask_knows_the_prefix_and_nothing_else(prefix: list[int], one: list[int], other: list[int]) -> None:
    a, b = hashes(prefix + one), hashes(prefix + other)
    assert torch.equal(a[: len(prefix)], b[: len(prefix)])
    same = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    assert torch.equal(a[: len(prefix) + same], b[: len(prefix) + same])
    if same < min(len(one), len(other)):
        until = len(prefix) + min(len(one), len(other))
        assert not (a[len(prefix) + same : until] == b[len(prefix) + same : until]).any()  # it never forgets the difference
    assert len(set(a.tolist())) == len(a)


@settings(max_examples=50, deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=6), TOKENS, st.integers(1, 200), st.integers(0, 2**31 - 1), st.integers(1, 10**6))
def test_batching_changes_no_mask(rows: list[list[int]], beginning: list[int], budget: int, seed: int, step: int) -> None:
    """However rows are cut into micro-batches and what they share, each predicting token's mask is that of its row alone."""
    rows = [[*(beginning if n % 2 else []), *row, 0] for n, row in enumerate(rows)]
    examples = [data.TokenizedExample(n, np.array(row), np.array([False, *[True] * (len(row) - 1)])) for n, row in enumerate(rows)]
    masks = dropout.Masks(0.5, seed)
    seen = []
    for batch in batching.micro_batches(examples, budget, "cpu"):
        masks.begin(step, batch.hash_T)
        mask = kept(masks.drop(3, 16))
        for row in sorted(set(batch.row_N.tolist())):
            seen.append(row)
            place = batch.place_N[torch.from_numpy(batch.row_N == row)]
            alone = keep(rows[row], probability=0.5, seed=seed, step=step, layer=3, features=16)
            assert torch.equal(mask[place], alone[:-1])
    assert sorted(seen) == list(range(len(rows)))


def test_known_bits() -> None:
    """The mask of one position, frozen: a run that began with an older version must go on with the same masks."""
    assert hashes([1, 2, 3]).tolist() == KNOWN_HASHES
    assert "".join("01"[int(bit)] for bit in keep([1, 2, 3], probability=0.5, seed=42, step=7, layer=2, features=32)[2]) == KNOWN_MASK


KNOWN_HASHES = [-2276730678435950772, -15821363813531846, -4804881631966062098]
KNOWN_MASK = "00010111100011100010100010011001"
