"""What the findings about data find, and what they cost: `python benchmarks/diagnosis/data_findings.py [--rows 100000]`.

- Leaks: for several seeds, validation rows that are lightly edited copies of training rows, among rows that are not; how many of the copies
  are found, and how many of the others are taken for copies. Rows of `desk` (few templates, so rows are alike by chance), the same with a
  label for an answer (nothing but the prompt tells rows apart), sums, the bundled example, and texts of random words.

Prints a table; writes nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import desk
import numpy as np

from tunesmith.diagnosis import copies, dataset, texts
from tunesmith.domain import datasets
from tunesmith.domain.datasets import Example

EXAMPLE = Path(__file__).parents[2] / "examples" / "support-triage"
Pair = tuple[str, str]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    print(f"{'rows':16}{'edited copies':>15}{'found':>8}{'right row':>11}{'others':>9}{'taken for copies':>18}")
    for name, make in SOURCES.items():
        counts = [sum(column) for column in zip(*(leaks(make, seed) for seed in range(arguments.seeds)), strict=True)]
        print(f"{name:16}{counts[0]:15}{counts[1]:8}{counts[2]:11}{counts[3]:9}{counts[4]:18}", flush=True)
    print(f"\n{'rows':16}{'training':>10}{'validation':>12}{'seconds':>9}{'MiB more at peak':>18}  findings")
    for name, make in (SOURCES | {"long": long}).items():
        if name != "triage":  # it has no more rows
            cost(name, make, arguments.rows, arguments.rows // 20)


# --- rows ---


def notes(count: int, seed: int) -> list[Pair]:
    """Return the service desk's messages and notes."""
    return [(row["prompt"], row["completion"]) for row in desk.rows(count, seed)]


def labels(count: int, seed: int) -> list[Pair]:
    """Return the service desk's messages and their categories."""
    return [(row["prompt"], row["completion"].split(" /")[0]) for row in desk.rows(count, seed)]


def sums(count: int, seed: int) -> list[Pair]:
    """Return questions of one single template, and a number as the answer. No threshold was set on these."""
    rng = random.Random(seed)
    made: dict[str, str] = {}
    while len(made) < count:
        who, what, where = (
            rng.choice(("Tom", "Ann", "Eve", "Kim", "Max")),
            rng.choice(("apples", "pens", "books", "coins")),
            rng.choice(_WHERE),
        )
        first, second = rng.randint(2, 90), rng.randint(2, 90)
        made[f"{who} has {first} {what} and gets {second} more {what} {where}. How many {what} does {who} have now?"] = str(first + second)
    return list(made.items())


_WHERE = ("at the market", "from a friend", "in the garden", "on Monday")


def triage(count: int, seed: int) -> list[Pair]:
    """Return the bundled example's messages and answers, in another order for each seed."""
    rows = [json.loads(line) for name in ("train", "valid") for line in (EXAMPLE / f"{name}.jsonl").read_text().splitlines()]
    random.Random(seed).shuffle(rows)
    return [(row["messages"][1]["content"], row["messages"][2]["content"]) for row in rows[:count]]


def prose(count: int, seed: int) -> list[Pair]:
    """Return texts of 20 to 60 random words, as frequent as words are, and answers of half the length."""
    rng = random.Random(seed)
    known = ["".join(rng.choices("abcdefghilmnoprstuvwy", k=rng.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (rank + 3) for rank in range(len(known))]
    drawn = iter(rng.choices(known, weights, k=100 * count))
    return [tuple(" ".join(next(drawn) for _ in range(rng.randint(*size))) for size in ((20, 60), (10, 30))) for _ in range(count)]  # type: ignore[misc]


def long(count: int, seed: int) -> list[Pair]:
    """Return texts behind 200 words that all rows have, and answers that a third of the rows have."""
    notice = " ".join(prompt for prompt, _ in prose(10, seed))
    return [(f"{prompt} {notice} {answer} {prompt[::-1]}", str(n % 3)) for n, (prompt, answer) in enumerate(prose(count, seed))]


SOURCES: dict[str, Callable[[int, int], list[Pair]]] = {"notes": notes, "labels": labels, "sums": sums, "triage": triage, "prose": prose}


# --- edits ---


def edited(text: str, rng: random.Random) -> str:
    """Return the text with one light edit."""
    words = text.split(" ")
    place = rng.randrange(1, len(words) - 1)
    edit = rng.choice(("drop", "add", "slip", "swap", "signs"))
    if edit == "drop":
        del words[place]
    elif edit == "add":
        words.insert(place, rng.choice(("please", "really", "just", "indeed")))
    elif edit == "slip":
        place = max(range(len(words)), key=lambda i: (words[i].isalpha(), len(words[i])))
        cut = rng.randrange(1, max(2, len(words[place]) - 1))
        words[place] = words[place][:cut] + words[place][cut + 1 :]
    elif edit == "swap":
        words[place], words[place - 1] = words[place - 1], words[place]
    else:
        return text.replace(".", "!").replace(",", " -")
    return " ".join(words)


def examples(pairs: list[Pair]) -> Iterator[Example]:
    """Yield the rows of a file."""
    for line, (prompt, answer) in enumerate(pairs, 1):
        yield Example(line, prompt=prompt, completion=answer)


# --- measures ---


def leaks(
    make: Callable[[int, int], list[Pair]], seed: int, num_training: int = 300, num_validation: int = 200, num_copies: int = 50
) -> list[int]:
    """Return how many copies there are, are found, are found with the row they were made of; other rows, and those taken for copies."""
    rng = random.Random(seed)
    rows = make(num_training + num_validation, seed)
    training, validation = rows[:num_training], rows[num_training:]
    sources = rng.sample(range(num_training), num_copies)
    for place, source in enumerate(sources):
        prompt, answer = training[source]
        validation[place] = (edited(prompt, rng), answer)
    train, valid, vocabulary = texts.read(examples(training), examples(validation), lambda: None)
    assert valid is not None
    pairs = copies.near(np.arange(len(valid)), valid, train, vocabulary, lambda: None).pairs
    found = [(place, source) for place, source in pairs if place < num_copies]
    right = sum(sources[place] == source for place, source in found)
    return [num_copies, len(found), right, len(validation) - num_copies, len(pairs) - len(found)]


def cost(name: str, make: Callable[[int, int], list[Pair]], num_training: int, num_validation: int) -> None:
    """Print what examining large files costs, in a process of its own that starts with nothing else in its memory."""
    rows = make(num_training + num_validation, 0)
    with tempfile.TemporaryDirectory() as folder:
        for file, part in (("train", rows[:num_training]), ("valid", rows[num_training:])):
            text = "".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in part)
            (Path(folder) / f"{file}.jsonl").write_text(text)
        done = subprocess.run([sys.executable, __file__, "--measure", folder], check=True, capture_output=True, text=True)
    print(f"{name:16}{num_training:10}{num_validation:12}{done.stdout}", end="", flush=True)


def measure(folder: Path) -> None:
    """Examine two files and print the processor's seconds, MiB more at the peak than before, and what was found."""
    before, started = peak(), time.process_time()
    with (folder / "train.jsonl").open("rb") as training, (folder / "valid.jsonl").open("rb") as validation:
        findings = dataset.examine(datasets.read(training), datasets.read(validation))
    seconds, more = time.process_time() - started, peak() - before
    print(f"{seconds:9.1f}{more:18.0f}  {', '.join(f'{finding.code} ({finding.severity})' for finding in findings)}")


def peak() -> float:
    """Return the most memory this program has had, in MiB; getrusage would count what was there before it was started."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    main()
