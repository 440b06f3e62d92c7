"""Rows of one file that are lightly edited copies of rows of another, told apart from rows that only share a template.

Candidates share runs of three words; a run counts the more, the fewer rows have it, so that what a template or a system message gives to
all rows counts nothing. Of a candidate that is much alike it is then asked whether what differs fills a slot: whether rows that have the
rest in common with both have yet other words there. "Ines here, my two lamps are broken" is no copy of "Hugo here, my two lamps are broken"
where others have written the same under their names; where nobody else has, it is.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.diagnosis.texts import Flags, Ints, Keys, Table, Vocabulary, Words

#: Rows looked up at most, spread over the file.
MAX_LOOKED_UP = 5000
#: Share of words, in their order, that must be the same in prompt and in answer.
_ALIKE = 0.8
#: Least weighted Jaccard similarity of the runs of three words. One changed word among ten leaves 0.4 of them.
_LEAST_SHARED = 0.3
#: Prompt or answer must have this many words; shorter ones are alike by chance.
_LEAST_WORDS = 8
#: Words spelled this alike are one word with a slip in it.
_SLIP = 0.8
#: Of a stretch of words that vary from row to row, this share must be the same.
_KEPT = 0.85
_CANDIDATES, _MATES, _LEAST_MATES = 3, 6, 2
#: A run or a word that is there this many times is known.
_KNOWN = 3
#: Rows that share this much of what two rows have in common are made like them.
_MADE_ALIKE = 0.15
#: Entries of the index read per row looked up; the rarest runs come first.
_READ = 20_000
_ROWS_AT_ONCE = 5000


@dataclass(frozen=True)
class Found:
    """Pairs (row of the first table, row of the second), and how many rows were looked up."""

    pairs: list[tuple[int, int]]
    looked_up: int


def near(rows: Ints, table: Table, other: Table, vocabulary: Vocabulary, beat: Callable[[], None]) -> Found:
    """Find for each of `rows` of `table` a row of `other` that it is a lightly edited copy of."""
    rows = rows[rows < table.num_compared]
    if len(rows) > MAX_LOOKED_UP:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_LOOKED_UP).astype(np.int64)]
    runs = [np.unique(_runs(table.words[table.starts[row] : table.starts[row + 1]])) for row in rows]
    if not sum(map(len, runs)) or not other.num_compared:
        return Found([], len(rows))
    index = _Index(np.unique(np.concatenate(runs)), other, beat)
    search = _Search(table, other, index, list(vocabulary))
    pairs = []
    for row, wanted in zip(rows.tolist(), runs, strict=True):
        beat()
        found = search.copy_of(row, wanted)
        if found is not None:
            pairs.append((row, found))
    return Found(pairs, len(rows))


def _runs(words: Words) -> Keys:
    """Return a fingerprint of each run of three words."""
    wide = words.astype(np.uint64)
    first, second, third = wide[:-2], wide[1:-1], wide[2:]
    mixed = (first * np.uint64(0x9E3779B97F4A7C15) + second) * np.uint64(0xC2B2AE3D27D4EB4F) + third
    mixed ^= mixed >> np.uint64(29)
    return np.asarray(mixed * np.uint64(0x165667B19E3779F9))


class _Index:
    """Which rows of a table have a run of words; only of the runs that are asked for."""

    def __init__(self, runs: Keys, table: Table, beat: Callable[[], None]) -> None:
        self.runs = runs
        self.num_rows = table.num_compared
        self.counts = np.zeros(len(runs), dtype=np.int64)
        rows: list[npt.NDArray[np.int32]] = []
        places: list[npt.NDArray[np.int32]] = []
        for first in range(0, self.num_rows, _ROWS_AT_ONCE):
            beat()
            starts = table.starts[first : first + _ROWS_AT_ONCE + 1]
            row_of_word = np.repeat(np.arange(first, first + len(starts) - 1, dtype=np.int32), np.diff(starts))
            place, is_known = self.find(_runs(table.words[starts[0] : starts[-1]]))
            kept = is_known & (row_of_word[:-2] == row_of_word[2:])
            self.counts += np.bincount(place[kept], minlength=len(runs))
            kept &= self.counts[place] <= _READ  # what more rows have is never read
            rows.append(row_of_word[:-2][kept])
            places.append(place[kept].astype(np.int32))
        beat()
        place_of, self.rows = np.concatenate(places), np.concatenate(rows)
        order = np.argsort(place_of, kind="stable")
        beat()
        self.rows = self.rows[order]
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(place_of, minlength=len(runs)))])
        #: What sharing a run says: nothing where all rows have it.
        self.weights = np.log(self.num_rows / np.clip(self.counts, 1, self.num_rows))

    def find(self, runs: Keys) -> tuple[Ints, Flags]:
        """Return the place of each run, and whether it is there at all."""
        place = np.minimum(np.searchsorted(self.runs, runs), len(self.runs) - 1)
        return place, np.asarray(self.runs[place] == runs)

    def places(self, runs: Keys) -> Ints:
        """Return the places of those runs that are asked for."""
        place, is_known = self.find(runs)
        return np.asarray(place[is_known])

    def counts_of(self, runs: Keys) -> Ints:
        """Return how many rows have each run; 0 for those that were not asked for."""
        place, is_known = self.find(runs)
        return np.asarray(np.where(is_known, self.counts[place], 0))

    def weight_of_unknown(self, runs: Keys) -> float:
        """Return the weight of the runs that are in no row looked up."""
        return float((~self.find(runs)[1]).sum()) * math.log(self.num_rows)

    def sharing(self, places: Ints) -> tuple[Ints, Ints, int]:
        """Return rows that have the rarest of some runs, most of them first, how many each has, and how many were looked for."""
        known = places[self.counts[places] > 0]
        known = known[np.argsort(self.counts[known], kind="stable")]
        chosen = known[np.cumsum(self.counts[known]) <= _READ]
        if not len(chosen):
            return np.empty(0, np.int64), np.empty(0, np.int64), 0
        rows = np.concatenate([self.rows[self.starts[place] : self.starts[place + 1]] for place in chosen])
        found, counts = np.unique(rows, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return found[order], counts[order], len(chosen)


class _Search:
    """Looks for the copies of single rows."""

    def __init__(self, table: Table, other: Table, index: _Index, spelling: Sequence[str]) -> None:
        self.table, self.other, self.index, self.spelling = table, other, index, spelling
        self.times = np.zeros(len(spelling) + 1, dtype=np.int64)
        for words in np.array_split(other.words, 1 + len(other.words) // 2**20):
            self.times += np.bincount(np.minimum(words, len(spelling)), minlength=len(spelling) + 1)

    def copy_of(self, row: int, runs: Keys) -> int | None:
        """Return the row of the other table that this one is an edited copy of."""
        prompt, answer = self.table.prompt(row).tolist(), self.table.answer(row).tolist()
        if max(len(prompt), len(answer)) < _LEAST_WORDS:
            return None
        places = self.index.places(runs)
        candidates, _, _ = self.index.sharing(places)
        for candidate in candidates[:_CANDIDATES].tolist():
            shared = self._shared(places, candidate)
            if shared is None:
                continue
            there = self.other.prompt(candidate).tolist(), self.other.answer(candidate).tolist()
            if not all(_alike(here, found) for here, found in zip((prompt, answer), there, strict=True)):
                continue
            if not self._differ_in_a_slot(prompt + answer, there[0] + there[1], candidate, shared):
                return int(candidate)
        return None

    def _shared(self, places: Ints, candidate: int) -> Ints | None:
        """Return the runs that a row and a candidate share; None when they weigh too little beside those they do not."""
        runs = np.unique(_runs(self._whole(candidate)))
        theirs = self.index.places(runs)
        weights = self.index.weights
        shared = np.intersect1d(places, theirs)
        common = float(weights[shared].sum())
        union = float(weights[places].sum() + weights[theirs].sum()) - common + self.index.weight_of_unknown(runs)
        return shared if common > 0 and common >= _LEAST_SHARED * union else None

    def _differ_in_a_slot(self, here: list[int], there: list[int], candidate: int, shared: Ints) -> bool:
        """Whether the two rows fill a slot of a template differently, by the rows that are made like both."""
        rows, counts, asked = self.index.sharing(shared)
        same = self.other.row_N[rows] == self.other.row_N[candidate]
        mates = [self._whole(row).tolist() for row in rows[~same & (counts >= _MADE_ALIKE * asked)][:_MATES]]
        kept, varies = self._agreement(here, there), (_varying(here, mates), _varying(there, mates))
        if len(mates) >= _LEAST_MATES:
            known = self._is_known_run(here), self._is_known_run(there)
            for ours, theirs in _differences(*kept):
                if not (all(varies[0][slice(*ours)]) and all(varies[1][slice(*theirs)])):
                    continue
                if _stands_so(ours, known[0]) and _stands_so(theirs, known[1]):
                    return True
                replaced = here[slice(*ours)], there[slice(*theirs)]
                if all(replaced) and all(self._is_known_word(word) for side in replaced for word in side):
                    return True
        # An edit of the template's own words leaves a varying word on the edited side alone.
        return all(_fills_differ(*side) for side in zip(kept, varies, strict=True))

    def _is_known_run(self, words: list[int]) -> Flags:
        return np.asarray(self.index.counts_of(_runs(np.array(words, dtype=np.uint32))) >= _KNOWN)

    def _is_known_word(self, word: int) -> bool:
        return word < len(self.spelling) and bool(self.times[word] >= _KNOWN)

    def _agreement(self, here: list[int], there: list[int]) -> tuple[list[bool], list[bool]]:
        """Return which words of each are in the other, slips of spelling let pass."""
        agree = [False] * len(here), [False] * len(there)
        for kind, a, a_end, b, b_end in difflib.SequenceMatcher(None, here, there, autojunk=False).get_opcodes():
            for i, j in zip(range(a, a_end), range(b, b_end), strict=False):
                if kind == "equal" or (kind == "replace" and self._is_slip(here[i], there[j])):
                    agree[0][i] = agree[1][j] = True
        for i in range(len(here)):
            for j in (i - 1, i + 1):  # two words changed places
                if 0 <= j < len(there) and here[i] == there[j] and not agree[0][i] and not agree[1][j]:
                    agree[0][i] = agree[1][j] = True
        return agree

    def _is_slip(self, first: int, second: int) -> bool:
        if max(first, second) >= len(self.spelling):
            return False
        words = self.spelling[first], self.spelling[second]
        if any(letter.isdigit() for word in words for letter in word):
            return False
        return difflib.SequenceMatcher(None, *words, autojunk=False).ratio() >= _SLIP

    def _whole(self, row: int) -> Words:
        return self.other.words[self.other.starts[row] : self.other.starts[row + 1]]


def _alike(first: list[int], second: list[int]) -> bool:
    """Whether two texts have enough words in common, in their order; short ones must have all."""
    if first == second:
        return True
    if min(len(first), len(second)) < _LEAST_WORDS:
        return False
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    return matcher.real_quick_ratio() >= _ALIKE and matcher.quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE


def _stretches(flags: list[bool]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each stretch of flags that are set."""
    start = None
    for place, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = place
        elif not flag and start is not None:
            yield start, place
            start = None


def _differences(here: list[bool], there: list[bool]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield start and end, in both texts, of what stands between words that are kept; the kept words of both are the same, in order."""
    kept = [[place for place, is_kept in enumerate(side) if is_kept] for side in (here, there)]
    before = (-1, -1)
    for after in [*zip(*kept, strict=True), (len(here), len(there))]:
        cuts = tuple((left + 1, right) for left, right in zip(before, after, strict=True))
        if any(start < end for start, end in cuts):
            yield cuts[0], cuts[1]
        before = after


def _stands_so(cut: tuple[int, int], is_known_run: Flags) -> bool:
    """Whether the words of a cut, or that there are none, stand so in several rows."""
    start, end = cut
    first, last = (start - 2, start - 1) if start == end else sorted((end - 3, start))
    return bool(is_known_run[max(0, first) : max(0, last + 1)].any())


def _fills_differ(kept: list[bool], varies: list[bool]) -> bool:
    """Whether a stretch of words that vary among rows made alike is, in good part, not in the other row."""
    return any(sum(kept[start:end]) < _KEPT * (end - start) for start, end in _stretches(varies))


def _varying(words: list[int], mates: list[list[int]]) -> list[bool]:
    """Return which words at least a third of the mates do not have at their place; all where there are too few mates to tell."""
    if len(mates) < _LEAST_MATES:
        return [True] * len(words)
    there = np.zeros(len(words), dtype=np.int64)
    matcher = difflib.SequenceMatcher(None, mates[0], words, autojunk=False)
    for mate in mates:
        matcher.set_seq1(mate)
        for block in matcher.get_matching_blocks():
            there[block.b : block.b + block.size] += 1
    return [bool(count * 3 <= len(mates) * 2) for count in there]
