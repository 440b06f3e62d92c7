"""What generation is made of: caches, drawing without sorting, weights laid out for the processor, adapters per row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.unit.test_engine import Heard, make_adapter, run, submit, tiny_llama
from tunesmith import hardware
from tunesmith.inference import cache, engine, sampling, weights
from tunesmith.inference.requests import Sampling

# --- caches ------------------------------------------------------------------------------------------------------------


def filled(length: int, value: float) -> cache.Strip:
    """Return a strip of two layers whose numbers say whose they are, and where."""
    strip = cache.Strip(range(length), None)
    numbers = value + torch.arange(length)[None, :, None].expand(2, length, 3) / 1000
    for layer in (0, 3):
        strip.extend(layer, numbers, -numbers)
    strip.length = length
    return strip


def assert_own(seat: cache.Seat, value: float) -> None:
    for keys, values in seat.shelf.look(seat.slot).values():
        assert torch.equal(keys, value + torch.arange(seat.length)[None, :, None].expand(2, seat.length, 3) / 1000)
        assert torch.equal(values, -keys)


@given(st.lists(st.tuples(st.sampled_from(["sit", "grow", "leave"]), st.integers(1, 300), st.integers(0, 20)), max_size=60))
def test_every_sequence_keeps_its_own_numbers(moves: list[tuple[str, int, int]]) -> None:
    shelves = cache.Shelves()
    seated: list[tuple[cache.Seat, float]] = []
    for number, (move, length, whom) in enumerate(moves):
        if move == "sit":
            seated.append((shelves.seat(filled(length, number), None), number))
        elif seated and move == "grow":
            seat, value = seated[whom % len(seated)]
            for _ in range(length % 70):
                shelves.make_room(seat)
                for keys, values in seat.shelf.layers.values():
                    keys[seat.slot, :, seat.length] = value + torch.tensor(seat.length) / 1000
                    values[seat.slot, :, seat.length] = -keys[seat.slot, :, seat.length]
                seat.length += 1
        elif seated:
            seat, _ = seated.pop(whom % len(seated))
            seat.shelf.remove(seat.slot)
        for seat, value in seated:
            assert seat.shelf.seats[seat.slot] is seat and seat.length <= seat.shelf.capacity
            assert_own(seat, value)


def test_an_empty_shelf_holds_no_memory() -> None:
    shelves = cache.Shelves()
    seats = [shelves.seat(filled(40, number), None) for number in range(9)]
    shelf = seats[0].shelf
    assert shelf.layers[0][0].shape[0] >= 9
    for seat in seats[1:]:
        shelf.remove(seat.slot)
    assert shelf.layers[0][0].shape[0] <= 4
    assert_own(seats[0], 0)
    shelf.remove(seats[0].slot)
    assert not shelf.layers


def test_a_seat_is_clean_when_it_is_taken() -> None:
    """What was NaN before would be NaN times nothing, which is NaN."""
    shelves = cache.Shelves()
    staying, bad = shelves.seat(filled(40, 1), None), shelves.seat(filled(60, 2), None)
    for pair in bad.shelf.layers.values():
        for whole in pair:
            whole[bad.slot] = float("nan")
    bad.shelf.remove(bad.slot)
    seat = shelves.seat(filled(10, 3), None)
    assert seat.slot == 1
    assert all(bool(whole[: len(seat.shelf.seats)].isfinite().all()) for pair in seat.shelf.layers.values() for whole in pair)
    assert_own(staying, 1)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40), st.integers(0, 40))
def test_the_common_beginning(a: list[int], b: list[int], same: int) -> None:
    b = a[:same] + b
    expected = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert cache._num_common(a, b) == expected


# --- drawing -----------------------------------------------------------------------------------------------------------


def sorted_draw(logits_V: torch.Tensor, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """Draw by sorting everything."""
    probs, order = torch.softmax((logits_V.double() - logits_V.max()) / temperature, dim=-1).sort(descending=True, stable=True)
    probs = probs[: int((probs.cumsum(0) < top_p).sum()) + 1]
    return int(order[int(torch.searchsorted(probs.cumsum(0), float(random.random()) * float(probs.sum()), right=True))])


@given(st.integers(0, 2**32), st.floats(0.001, 0.999), st.floats(0.1, 2), st.floats(0.01, 20), st.booleans())
def test_top_p_draws_what_sorting_everything_draws(seed: int, top_p: float, temperature: float, spread: float, ties: bool) -> None:
    logits_V = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * spread
    logits_V = logits_V.round() if ties else logits_V
    ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
    for _ in range(5):
        drawn = sampling.draw(logits_V, Sampling(temperature=temperature, top_p=top_p), Counter(), ours)
        assert drawn == sorted_draw(logits_V, temperature, top_p, theirs)


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_next_to_no_temperature_takes_the_likeliest(top_p: float) -> None:
    logits_V = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 20
    for temperature in (1e-310, 1e-30, 1e-6):
        drawn = sampling.draw(logits_V, Sampling(temperature=temperature, top_p=top_p), Counter(), np.random.default_rng(0))
        assert drawn == int(logits_V.argmax())


@pytest.mark.parametrize("sampling_", [Sampling(), Sampling(temperature=0), Sampling(top_p=0.5), Sampling(top_logprobs=1)])
def test_nonsense_is_not_drawn_from(sampling_: Sampling) -> None:
    logits_V = torch.zeros(10)
    logits_V[3] = float("nan")
    with pytest.raises(engine.TunesmithError, match="NaN"):
        sampling.draw(logits_V, sampling_, Counter(), np.random.default_rng(0))
    with pytest.raises(engine.TunesmithError, match="NaN"):
        sampling.measured(0, logits_V, 1)


# --- weights -----------------------------------------------------------------------------------------------------------

needs_bfloat16 = pytest.mark.skipif(not hardware.native_bfloat16(), reason="this processor does not multiply bfloat16")
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
TYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]


class Three(nn.Module):
    """Linear layers with and without bias, wide and narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.deep = nn.Linear(48, 1600), nn.Linear(1600, 24, bias=False), nn.Sequential(nn.Linear(24, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.deep(self.narrow(self.wide(x)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 48), (5, 48), (1, 1, 48), (1, 300, 48), (3, 2, 48)])
def test_weights_laid_out_multiply_as_before(dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Where no layer is laid out, a new torch has renamed what `weights` uses: answers stay right, but slower."""
    torch.manual_seed(0)
    model = Three().to(dtype)
    x = torch.randn(shape, dtype=dtype)
    with torch.inference_mode():
        before = model(x)
        weights.lay_out(model)
        assert [type(layer) for layer in (model.wide, model.narrow, model.deep[0])] == [weights.LaidOut] * 3
        after = model(x)
    assert after.shape == before.shape and after.dtype == dtype
    assert torch.allclose(after, before, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.skipif("avx512_bf16" not in CPU or "amx_bf16" in CPU, reason="measured on AVX-512 only")
def test_one_row_is_multiplied_as_beside_others() -> None:
    """Answers in bfloat16 are then the same bits alone and in company."""
    torch.manual_seed(0)
    model = Three().bfloat16()
    weights.lay_out(model)
    x = (torch.randn(400, 48) * torch.randn(400, 48).mul(3).exp()).bfloat16()
    with torch.inference_mode():
        together = model.wide(x)
        assert all(torch.equal(model.wide(x[row : row + 1])[0], together[row]) for row in range(400))
        hidden = together.clone()
        together = model.narrow(hidden)
        assert all(torch.equal(model.narrow(hidden[row : row + 1])[0], together[row]) for row in range(400))


def test_what_cannot_be_laid_out_stays() -> None:
    model = Three().double()
    weights.lay_out(model)
    assert type(model.wide) is nn.Linear


def test_an_adapter_on_weights_laid_out(tmp_path: Path) -> None:
    heard = []
    for laid_out in (False, True):
        network = tiny_llama().float()
        if laid_out:
            weights.lay_out(network)
        machine = engine.Engine(network)
        loaded = machine.adapters.load(make_adapter(tmp_path))
        heard.append(run(machine, sampling=Sampling(temperature=0, max_tokens=10, top_logprobs=0), adapter=loaded))
    assert heard[0].ids() == heard[1].ids()
    assert [token.logprob for token in heard[0].tokens[0]] == pytest.approx([token.logprob for token in heard[1].tokens[0]], abs=1e-3)


def test_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads = weights.Threads(Three())
        with threads.for_rows(1):
            assert torch.get_num_threads() == 1, "waking another thread would take longer than these few products"
        with threads.for_rows(10**6):
            assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="lost"), threads.for_rows(1):
            raise RuntimeError("lost")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- adapters ----------------------------------------------------------------------------------------------------------


class Routed(nn.Module):
    """A layer that hands a part of the rows on, as a mixture of experts does."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        y = torch.empty(*x.shape[:-1], self.inner.out_features, dtype=x.dtype)
        for rows in (slice(0, None, 2), slice(1, None, 2)):
            if x[:, rows].shape[1]:
                y[:, rows] = self.inner(x[:, rows])
        return y


def test_rows_that_are_routed_away_are_computed_one_sequence_at_a_time(tmp_path: Path) -> None:
    """A layer that does not see all rows cannot tell whose they are: base and adapter are then not computed together, but right."""
    make_adapter(tmp_path)
    heard: list[list[Heard]] = []
    for routed in (False, True):
        network = tiny_llama()
        machine = engine.Engine(network)
        loaded = machine.adapters.load(tmp_path)
        if routed:
            for layer in network.model.layers:
                layer.mlp.up_proj = Routed(layer.mlp.up_proj)
        own = Sampling(temperature=0, max_tokens=10)
        heard.append([submit(machine, [5] * length, own, adapter=adapter)[0] for length, adapter in ((5, None), (6, loaded), (7, loaded))])
        while machine.step():
            pass
    assert [own.ids() for own in heard[0]] == [own.ids() for own in heard[1]]
    assert all(len(own.ids()) == 10 and own.error is None for own in heard[1])
