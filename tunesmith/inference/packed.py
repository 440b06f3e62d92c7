"""Run many sequences through a model at once: their new tokens in one row, each with its own place, attention and adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tunesmith.errors import TunesmithError
from tunesmith.inference import attention, forward, weights
from tunesmith.inference.adapters import Adapter, Switch
from tunesmith.inference.cache import Prefixes, Seat, Shelves, Strip


class Packed:
    """A `forward.Runner`. Prompts are read into strips, which are kept for those who begin alike; answers grow on shelves."""

    def __init__(self, model: nn.Module, switch: Switch) -> None:
        self._model, self._switch = model, switch
        self._device = next(model.parameters()).device
        self._configs = attention.configurations(model)
        self._threads = weights.Threads(model)
        self._shelves = Shelves()
        self._prefixes = Prefixes()

    def begin(self, ids: Sequence[int], adapter: Adapter | None, *, fresh: bool) -> Strip | None:
        """Return a strip that holds what is known of the prompt. None: another one is reading what they have in common."""
        return Strip(ids, adapter) if fresh else self._prefixes.begin(ids, adapter)

    def compute(self, parts: Sequence[forward.Part]) -> list[Tensor | TunesmithError]:
        """Compute all parts at once; if that fails, each alone, so that only those fail who have to."""
        try:
            return list(self._compute(parts))
        except RuntimeError as error:
            if len(parts) == 1:
                return [forward.failure(error)]
        return [result for part in parts for result in self.compute([part])]

    def fork(self, prompt: forward.Held, adapter: Adapter | None, *, last: bool) -> Seat:
        """Give a copy of the prompt's strip a place on a shelf."""
        assert isinstance(prompt, Strip)
        return self._shelves.seat(prompt, adapter)

    def end(self, held: forward.Held, ids: Sequence[int], adapter: Adapter | None) -> None:
        """Keep what was read and written for those who begin with it: a chat's next turn."""
        assert isinstance(held, Seat)
        strip = Strip(ids[: held.length], adapter)
        strip.begin_with(held.shelf.look(held.slot), held.length)
        self._prefixes.keep(strip, adapter)
        held.shelf.remove(held.slot)

    def drop(self, held: forward.Held) -> None:
        """Forget a prompt or an answer."""
        if isinstance(held, Seat):
            held.shelf.remove(held.slot)
        elif isinstance(held, Strip):
            self._prefixes.drop(held)

    def trim(self, num_tokens: int) -> None:
        """Keep at most `num_tokens` for those who may come."""
        self._prefixes.trim(num_tokens)

    def _compute(self, parts: Sequence[forward.Part]) -> list[Tensor]:
        for part in parts:
            if isinstance(part.held, Seat):
                self._shelves.make_room(part.held)
        order = sorted(range(len(parts)), key=lambda index: _rank(parts[index]))
        logits = self._compute_row([parts[index] for index in order])
        for part in parts:
            part.held.length += len(part.ids)
            if isinstance(part.held, Strip) and part.held.length == len(part.held.ids):
                self._prefixes.keep(part.held, part.adapter)
        by_index = dict(zip(order, logits, strict=True))
        return [by_index[index] for index in range(len(parts))]

    def _compute_row(self, parts: Sequence[forward.Part]) -> Sequence[Tensor]:
        """Compute parts in the order of their rows."""
        row = _Row(parts)
        pack = attention.Pack(row.seats, row.pieces, self._device)
        ids_1R, places_1R, kept_K = (torch.tensor(numbers, device=self._device) for numbers in ([row.ids], [row.places], row.kept))
        with pack.at_work(self._configs), self._switch.using(row.adapters, row.kept), self._threads.for_rows(len(row.ids)):
            output = self._model(input_ids=ids_1R, position_ids=places_1R, use_cache=False, logits_to_keep=kept_K)
        logits_KV: Tensor = output.logits[0].cpu()
        return torch.split(logits_KV, [len(part.ids) if part.all_logits else 1 for part in parts])


def _rank(part: forward.Part) -> tuple[int, ...]:
    """Put rows of one adapter side by side, and among them those of one shelf in its order: then nothing needs to be gathered."""
    adapter = 0 if part.adapter is None else id(part.adapter)
    return (adapter, part.held.shelf.capacity, part.held.slot) if isinstance(part.held, Seat) else (adapter, 1 << 62)


class _Row:
    """What the parts come to side by side."""

    def __init__(self, parts: Sequence[forward.Part]) -> None:
        self.ids: list[int] = []
        self.places: list[int] = []  # in their own sequence
        self.kept: list[int] = []  # rows whose logits are wanted
        self.adapters: list[Adapter | None] = []
        self.seats: list[tuple[int, Seat]] = []
        self.pieces: list[tuple[int, int, Strip]] = []
        for part in parts:
            self._add(part)

    def _add(self, part: forward.Part) -> None:
        start, num = len(self.ids), len(part.ids)
        self.ids += part.ids
        self.places += range(part.held.length, part.held.length + num)
        self.kept += range(start if part.all_logits else start + num - 1, start + num)
        self.adapters += [part.adapter] * num
        if isinstance(part.held, Seat):
            self.seats.append((start, part.held))
        elif isinstance(part.held, Strip):
            self.pieces.append((start, start + num, part.held))
