"""What data shows before training: each finding with its numbers and lines, and, of each, healthy data in which it is not found."""

from __future__ import annotations

import importlib
import json
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import services
from tunesmith.diagnosis import copies, dataset, texts
from tunesmith.domain import datasets, ids
from tunesmith.domain.datasets import Example
from tunesmith.domain.findings import DATA_CODES, Finding, data_events
from tunesmith.domain.jobs import Job
from tunesmith.services import files as uploads
from tunesmith.settings import Settings
from tunesmith.store import jobs, queue, records
from tunesmith.worker import worker

ROOT = Path(__file__).resolve().parents[2]
TRIAGE = ROOT / "examples" / "support-triage"
Pair = tuple[str, str]


def load(name: str) -> ModuleType:
    """Return a module of benchmarks/diagnosis, which is no package."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "diagnosis"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


made: Any = load("data_findings")


def plain(pairs: Sequence[Pair]) -> list[Example]:
    return [Example(line, prompt=prompt, completion=answer) for line, (prompt, answer) in enumerate(pairs, 1)]


_ROLES = ("system", "user", "assistant")


def chats(pairs: Sequence[Pair], system: str = "Be brief.") -> list[Example]:
    return [
        Example(line, messages=tuple({"role": role, "content": said} for role, said in zip(_ROLES, (system, *pair), strict=True)))
        for line, pair in enumerate(pairs, 1)
    ]


def examine(training: Sequence[Pair], validation: Sequence[Pair] | None = None, **more: Any) -> list[Finding]:
    found = dataset.examine(plain(training), None if validation is None else plain(validation), **more)
    # A chat under a system message shows what the same prompts and answers show.
    same = dataset.examine(chats(training), None if validation is None else chats(validation), **more)
    assert [finding.to_dict() for finding in found if finding.code != "prompt_in_loss"] == [
        finding.to_dict() for finding in same if finding.code != "prompt_in_loss"
    ]
    return found


def the(code: str, found: Sequence[Finding], kind: str | None = None) -> Finding:
    """Return the one finding with a code, and a kind if given."""
    (one,) = [f for f in found if f.code == code and (kind is None or f.evidence["kind"] == kind)]
    assert one.message[-1] == one.advice[-1] == "." and 0 < one.confidence <= 1
    assert Finding.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one
    return one


def codes(found: Sequence[Finding], *, above_info: bool = False) -> set[str]:
    return {finding.code for finding in found if not above_info or finding.severity != "info"}


def bundled(name: str) -> list[Example]:
    with (TRIAGE / f"{name}.jsonl").open("rb") as file:
        return list(datasets.read(file))


# --- healthy data ---


@pytest.mark.parametrize("source", ["notes", "labels", "sums", "prose"])
@pytest.mark.parametrize("seed", range(5))
def test_healthy_data_shows_nothing(source: str, seed: int) -> None:
    rows = made.SOURCES[source](600, seed)
    assert codes(examine(rows[:400], rows[400:]), above_info=True) == set()
    assert codes(examine(rows, split=0.6)) <= {"inconsistent_answers"}


def test_the_bundled_example_is_small_but_healthy() -> None:
    found = dataset.examine(bundled("train"), bundled("valid"))
    assert codes(found) == {"small_validation"} and codes(found, above_info=True) == set()
    assert codes(dataset.examine(bundled("train"), bundled("test"))) == {"small_validation"}


# --- duplicates ---


def test_duplicates_are_counted_whatever_their_case_and_spaces() -> None:
    rows = made.prose(200, 1)
    again = [(f"  {prompt.upper()}\n", answer.replace(" ", "  ")) for prompt, answer in rows[10:30]]
    found = the("duplicates", examine([*rows, *again, rows[10]]))
    assert found.severity == "warning" and found.confidence == 1.0
    assert (found.evidence["rows"], found.evidence["of"], found.evidence["groups"]) == (21, 221, 20)
    assert found.evidence["training_lines"] == list(range(201, 221)) and found.evidence["pairs"][0] == [11, 201]
    assert "21 of 221 training rows (9.5 %)" in found.message and found.changes[0].after == "200 rows, each once"


def test_few_duplicates_are_a_note_unless_a_part_of_the_file_validates() -> None:
    rows = made.prose(200, 1)
    few = [*rows, *rows[:4]]
    assert the("duplicates", examine(few)).severity == "info"
    split = the("duplicates", examine(few, split=0.8))
    assert split.severity == "warning" and split.evidence["expected_leaked"] == pytest.approx(4 * 2 * 0.2 * 0.8)
    assert the("duplicates", examine(few, rows[50:60], split=0.8)).severity == "info", "with a file nothing is split off"


def test_what_is_no_duplicate() -> None:
    rows = made.prose(60, 2)
    assert "duplicates" not in codes(examine([*rows, *((prompt, answer + " so") for prompt, answer in rows[:30])])), "another answer"
    short = [("", word) for word in "abcdefghij" * 10]
    assert "duplicates" not in codes(dataset.examine(plain(short))), "short texts without a prompt are equal by chance"
    assert "duplicates" in codes(dataset.examine(plain([("", f"a text of number {n % 9}") for n in range(60)])))


# --- inconsistent answers ---


def test_short_answers_that_contradict_each_other() -> None:
    rows = made.labels(300, 3)
    assert "inconsistent_answers" not in codes(examine(rows))
    wrong = {"TRANSIT": "FAULT", "FAULT": "LEDGER", "LEDGER": "AMEND", "AMEND": "RECALL", "RECALL": "TRANSIT"}
    found = the("inconsistent_answers", examine([*rows, *((prompt, wrong[answer.strip()]) for prompt, answer in rows[:15])]))
    assert found.severity == "warning" and found.evidence["kind"] == "short"
    assert found.evidence["prompts"] == 15 and found.evidence["rows"] == 30
    assert found.evidence["pairs"][:2] == [[1, 301], [2, 302]]
    noisy = [(f"Is {n % 50} odd?", ("yes", "no")[(n // 50 + n) % 2]) for n in range(300)]
    assert the("inconsistent_answers", examine(noisy)).severity == "critical"


def test_several_good_texts_are_no_contradiction() -> None:
    rows = made.prose(300, 3)
    found = the("inconsistent_answers", examine([*rows, *((prompt, rows[n + 1][1]) for n, (prompt, _) in enumerate(rows[:90]))]))
    assert found.severity == "info" and found.evidence["kind"] == "text" and not found.changes
    same = [("Tell a story.", answer) for _, answer in rows]
    assert codes(examine(same), above_info=True) == set()


# --- leakage ---


def test_whole_rows_of_training_in_validation() -> None:
    rows = made.notes(400, 4)
    found = examine(rows[:200], [*rows[200:], *rows[40:60]])
    leak = the("leakage", found)
    assert leak.severity == "critical" and leak.confidence == 1.0 and leak.evidence["kind"] == "exact"
    assert leak.evidence["rows"] == 20 and leak.evidence["of"] == 220 and "20 of 220 validation rows (9.1 %)" in leak.message
    assert leak.evidence["pairs"] == [[41 + n, 201 + n] for n in range(20)]
    assert leak.evidence["training_lines"] == list(range(41, 61)) and leak.evidence["validation_lines"] == list(range(201, 221))
    assert leak.changes[0].knob == "validation_data"


def test_one_leaked_row_of_many_bends_no_score() -> None:
    rows = made.notes(500, 5)
    assert the("leakage", examine(rows[:200], [*rows[200:], rows[7]])).severity == "warning"


def test_prompts_of_training_with_other_answers() -> None:
    rows = made.prose(400, 5)
    leak = the("leakage", examine(rows[:200], [*rows[200:], *((prompt, rows[0][1]) for prompt, _ in rows[100:120])]))
    assert leak.severity == "warning" and leak.evidence["kind"] == "prompt" and leak.evidence["rows"] == 20
    stories = [("Tell a story.", answer) for _, answer in rows]
    assert "leakage" not in codes(examine(stories[:200], stories[200:])), "a prompt that all rows have is no row's own"


@pytest.mark.parametrize(("source", "least"), [("notes", 0.98), ("labels", 0.97), ("sums", 0.97), ("triage", 0.98), ("prose", 0.99)])
def test_edited_copies_are_found_and_nothing_else(source: str, least: float) -> None:
    num_copies, found, right, others, taken = (
        sum(column) for column in zip(*(made.leaks(made.SOURCES[source], seed) for seed in range(3)), strict=True)
    )
    assert found >= least * num_copies and right >= 0.98 * found
    assert taken <= 0.003 * others


def test_a_near_leak_is_said_with_its_pairs() -> None:
    rows = made.notes(400, 6)
    rng = random.Random(6)
    edits = [(made.edited(prompt, rng), answer) for prompt, answer in rows[:30]]
    leak = the("leakage", examine(rows[:200], [*rows[200:], *edits]), "near")
    assert leak.severity == "warning" and leak.confidence < 1 and 25 <= leak.evidence["rows"] <= 30
    assert set(map(tuple, leak.evidence["pairs"])) <= {(1 + n, 201 + n) for n in range(30)}


def orders(numbers: Sequence[int]) -> list[Pair]:
    return [(f"Order {n} has not arrived yet, can you please tell me where it is?", "orders") for n in numbers]


def test_a_template_is_told_by_the_rows_that_fill_it() -> None:
    """The same two rows are a copy where they are the only ones of their kind, and none where many rows are made like them."""
    others = [(prompt, "sales") for prompt, _ in made.prose(200, 7)]
    (pair,) = (the("leakage", examine([*others, *orders([48213])], orders([59120])), "near").evidence["pairs"],)
    assert pair == [[201, 1]]
    assert "leakage" not in codes(examine([*others, *orders(range(10_000, 10_040))], orders(range(20_000, 20_020))))


def test_long_boilerplate_hides_no_copy_and_makes_none() -> None:
    notice = " ".join(f"word{n}" for n in range(150))
    rows = [(f"{prompt}\n{notice}", f"{n % 3}") for n, (prompt, _) in enumerate(made.prose(300, 8))]
    assert "leakage" not in codes(examine(rows[:200], rows[200:]))
    edited = [(prompt.replace(" ", " well, ", 1), answer) for prompt, answer in rows[:20]]
    leak = the("leakage", examine(rows[:200], [*rows[200:], *edited]), "near")
    assert leak.evidence["pairs"] == [[1 + n, 101 + n] for n in range(20)]


def test_texts_without_prompts_and_without_spaces() -> None:
    rng = random.Random(9)
    signs = [chr(0x4E00 + n) for n in range(600)]
    texts_ = ["".join(rng.choices(signs, k=40)) for _ in range(300)]
    rows = [("", text) for text in texts_]
    assert "leakage" not in codes(dataset.examine(plain(rows[:200]), plain(rows[200:])))
    edited = [("", text[:20] + "好" + text[21:]) for text in texts_[:10]]
    assert the("leakage", dataset.examine(plain(rows[:200]), plain([*rows[200:], *edited])), "near").evidence["rows"] == 10


def test_a_bound_on_what_is_compared_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MAX_LOOKED_UP", 50)
    monkeypatch.setattr(texts, "MAX_COMPARED", 150)
    rows = made.prose(300, 10)
    edited = [(prompt + " indeed", answer) for prompt, answer in rows[:100]]
    leak = the("leakage", examine(rows[:200], edited), "near")
    assert leak.evidence["rows"] == leak.evidence["looked_at"] == 50 and leak.evidence["of"] == 100
    assert leak.evidence["training_rows_looked_at"] == 150 and "were not compared word by word" in leak.message


@given(st.integers(0, 10**6), st.integers(0, 3))
def test_the_order_of_rows_changes_no_count(seed: int, leaked: int) -> None:
    rng = random.Random(seed)
    rows = made.notes(60, seed)
    training, validation = rows[:40], [*rows[40:], *rows[:leaked]]
    counts = []
    for _ in range(2):
        found = dataset.examine(plain(training), plain(validation))
        counts.append({(f.code, f.evidence.get("kind"), f.severity): f.evidence.get("rows") for f in found})
        rng.shuffle(training)
        rng.shuffle(validation)
    assert counts[0] == counts[1]
    assert counts[0].get(("leakage", "exact", "critical")) == (leaked or None)


# --- classes ---


def labelled(counts: dict[str, int]) -> list[Pair]:
    answers = [name for name, count in counts.items() for _ in range(count)]
    return [(prompt, answer) for (prompt, _), answer in zip(made.prose(len(answers), 11), answers, strict=True)]


def test_rare_classes() -> None:
    found = the("class_imbalance", examine(labelled({"ham": 285, "spam": 15})))
    assert found.severity == "warning" and found.evidence["counts"] == {"ham": 285, "spam": 15}
    assert found.evidence["majority_share"] == 0.95 and found.evidence["ratio"] == 19 and len(found.evidence["training_lines"]) == 15
    assert "95 %" in found.message and "'spam' (15)" in found.message
    rare = the("class_imbalance", examine(labelled({"a": 30, "b": 30, "c": 3})))
    assert rare.evidence["below_5"] == 1 and rare.evidence["training_lines"] == [61, 62, 63]


def test_a_class_that_only_validation_has() -> None:
    found = the("class_imbalance", examine(labelled({"a": 60, "b": 60}), labelled({"a": 100, "b": 95, "B.": 5})[::-1]))
    assert found.evidence["rarest"]["b."] == 0


def test_balanced_classes_and_large_rare_ones_are_no_warning() -> None:
    assert codes(examine(labelled({"a": 60, "b": 45, "c": 80}))) == set()
    assert the("class_imbalance", examine(labelled({"a": 600, "b": 60, "c": 200}))).severity == "info"
    names = [(f"Who wrote {prompt}?", f"author {n}") for n, (prompt, _) in enumerate(made.prose(100, 12))]
    assert codes(examine(names)) == set(), "short answers that differ are no classes"
    assert codes(examine(made.sums(4000, 12))) == set(), "quantities are no classes, however often each is there"
    stars = {str(n): 40 + n for n in range(1, 6)} | {"0": 3}
    assert the("class_imbalance", examine(labelled(stars))).evidence["rarest"]["0"] == 3


# --- variety ---


def test_few_answers_to_many_prompts() -> None:
    rows = made.prose(300, 13)
    found = the("low_variety", examine([(prompt, rows[n % 12][1]) for n, (prompt, _) in enumerate(rows)]))
    assert found.severity == "warning" and found.evidence["distinct"] == 12 and found.evidence["effective"] == pytest.approx(12)
    one = the("low_variety", examine([(prompt, "I do not know.") for prompt, _ in rows]))
    assert one.severity == "critical" and "All 300 training rows have the same answer" in one.message
    assert "low_variety" not in codes(examine([(prompt, rows[n // 2][1]) for n, (prompt, _) in enumerate(rows)]))


def test_one_beginning_for_most_answers() -> None:
    rows = made.prose(200, 14)
    alike = [(prompt, f"Thank you for asking: {answer}" if n % 4 else answer) for n, (prompt, answer) in enumerate(rows)]
    found = the("low_variety", examine(alike))
    assert found.severity == "info" and found.evidence["opening"] == "thank you for asking" and found.evidence["share"] == 0.75
    notation = [(prompt, json.dumps({"a long name": answer, "another": n})) for n, (prompt, answer) in enumerate(rows)]
    assert "low_variety" not in codes(examine(notation))


# --- prompts among the answers ---


def in_the_answer(rows: Sequence[Pair]) -> list[Pair]:
    return [("", prompt + answer) for prompt, answer in rows]


def test_prompts_inside_the_answers_are_seen_by_their_scaffold() -> None:
    found = the("prompt_in_loss", dataset.examine(plain(in_the_answer(made.notes(100, 15)))))
    assert found.severity == "warning" and found.evidence["marks"] == ["Message:", "Note:"] and found.evidence["rows"] == 100
    assert "what stands before “Note:” looks like the prompt" in found.message and found.changes[0].knob == "training_data"
    assert found.evidence["training_lines"] == list(range(1, 21))


@pytest.mark.parametrize(
    ("shape", "marks"),
    [
        ("Question: {} Answer: {}", ["Question:", "Answer:"]),
        ("### Instruction:\n{}\n\n### Response:\n{}", ["### Instruction:", "### Response:"]),
        ("[INST] {} [/INST]{}", ["[INST]", "[/INST]"]),
        ("<|user|>{}<|assistant|>{}", ["<|user|>", "<|assistant|>"]),
        ("{}\n\n###\n\n{}", ["###"]),
        ("{} -> {}", ["->"]),
    ],
)
def test_scaffolds(shape: str, marks: list[str]) -> None:
    rows = [("", shape.format(*pair)) for pair in made.prose(60, 16)]
    found = the("prompt_in_loss", dataset.examine(plain(rows)))
    assert found.severity == "warning" and found.evidence["marks"] == marks
    opened = [Example(row.line, messages=({"role": "assistant", "content": row.completion},)) for row in plain(rows)]
    assert the("prompt_in_loss", dataset.examine(opened)).evidence["marks"] == marks


def test_answers_that_repeat_their_prompt() -> None:
    rows = made.prose(60, 17)
    found = the("prompt_in_loss", examine([(prompt, f"{prompt} {answer}") for prompt, answer in rows]))
    assert found.severity == "warning" and found.evidence["kind"] == "repeated"
    assert "prompt_in_loss" not in codes(examine([(p, f"{p} {a}" if n % 2 else a) for n, (p, a) in enumerate(rows)]))


def test_plain_text_may_be_meant() -> None:
    prose = made.prose(60, 18)
    assert the("prompt_in_loss", dataset.examine(plain(in_the_answer(prose)))).severity == "info"
    articles = [("", f"# About {a}\n\n{b}\n\n## More on {b[:9]}\n\n{a}: {b}") for a, b in prose]
    assert the("prompt_in_loss", dataset.examine(plain(articles))).severity == "info"
    notation = [("", json.dumps({"question": a, "answer": b})) for a, b in prose]
    assert the("prompt_in_loss", dataset.examine(plain(notation))).severity == "info"
    assert "prompt_in_loss" not in codes(dataset.examine(plain([*prose[:30], *in_the_answer(prose[30:])]))), "half of the rows"


# --- too few rows ---


@pytest.mark.parametrize(("rows", "severity"), [(8, "warning"), (24, "warning"), (25, "info"), (199, "info"), (200, None)])
def test_small_validation(rows: int, severity: str | None) -> None:
    found = dataset.small_validation(rows)
    assert (found and found.severity) == severity
    if found:
        # Two standard errors at p = 0.5.
        assert found.evidence["smallest_difference_points"] == pytest.approx(2 * 100 * (0.25 / rows) ** 0.5)
        assert found.evidence["rows_for_5_points"] == 400 and found.changes[0].after == "400 rows"


def test_small_validation_by_tokens_and_by_split() -> None:
    found = dataset.small_validation(40, num_target_tokens=10_000)
    assert found and found.evidence["smallest_token_difference_points"] == 1.0 and "10000 target tokens" in found.message
    rows = made.prose(100, 19)
    assert the("small_validation", examine(rows, split=0.8)).evidence["rows"] == 20
    assert "small_validation" not in codes(examine(rows))


def test_too_little_data() -> None:
    rows = made.prose(60, 20)
    assert the("too_little_data", examine(rows[:49])).evidence["rows"] == 49
    assert "too_little_data" not in codes(examine(rows[:50]))
    assert the("too_little_data", examine(rows, split=0.8)).evidence["rows"] == 48


# --- what tokenizing found ---


def test_rows_that_were_cut_or_left_out() -> None:
    cut = dataset.truncated_rows("training", 40, 400, list(range(5, 45)), 512)
    assert cut and cut.severity == "warning" and cut.evidence["training_lines"] == list(range(5, 25)) and cut.evidence["rows"] == 40
    assert "40 of 400 training rows (10 %) are longer than max_length 512 tokens" in cut.message
    left = dataset.no_target_rows("validation", 1, 400, [7], 512)
    assert left and left.severity == "info" and left.evidence["validation_lines"] == [7] and left.changes[0].knob == "validation_data"


# --- any data at all ---

_TEXT = st.text(max_size=30)
_ROW = st.builds(Example, line=st.integers(1, 10**6), prompt=_TEXT, completion=_TEXT.filter(bool))
_MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": _TEXT})
_CHAT = st.builds(
    Example,
    line=st.integers(1, 10**6),
    messages=st.lists(_MESSAGE, max_size=4).map(lambda m: (*m, {"role": "assistant", "content": "yes"})),
)


@given(st.lists(_ROW | _CHAT, min_size=1, max_size=30), st.none() | st.lists(_ROW | _CHAT, min_size=1, max_size=30))
def test_no_rows_make_it_fall_over(training: list[Example], validation: list[Example] | None) -> None:
    found = dataset.examine(training, validation, split=0.8)
    lines = {"training_lines": {row.line for row in training}, "validation_lines": {row.line for row in validation or ()}}
    for finding in found:
        assert finding.code in (*DATA_CODES, "too_little_data")
        json.dumps(finding.to_dict(), allow_nan=False)
        for key, known in lines.items():
            assert set(finding.evidence.get(key, ())) <= known
    assert len({event.key for event in data_events(found)}) == len(found)


def test_tool_calls_tools_and_weights_count() -> None:
    weather = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    call = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": weather}]}
    ask = {"role": "user", "content": "Weather?"}
    unlearned = {"role": "assistant", "content": "Hm.", "weight": 0}
    tool = {"type": "function", "function": {"name": "weather"}}
    one, two = Example(1, messages=(ask, call, unlearned)), Example(2, messages=(ask, call), tools=(tool,))
    table, _, _ = texts.read([one, Example(3, messages=(ask, call)), two], None, lambda: None)
    assert table.row_N[0] == table.row_N[1] != table.row_N[2] and table.answer_N[0] == table.answer_N[2]


def test_it_beats_all_the_while() -> None:
    rows = made.prose(300, 21)
    beats = []
    dataset.examine(plain(rows[:200]), plain(rows[200:]), beat=lambda: beats.append(1))
    assert len(beats) > 200 + 100 + 100


# --- in a job ---


@pytest.fixture
def context(tiny: Path, tmp_path: Path) -> Iterator[services.Context]:
    opened = services.open(Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", allowed_models=(str(tiny),)))
    yield opened
    opened.close()


def uploaded(context: services.Context, name: str, rows: Sequence[Pair]) -> str:
    content = "".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows).encode()
    with uploads.Upload(context) as upload:
        upload.write(content)
        return upload.finish(filename=f"{name}.jsonl", purpose="fine-tune").id


def test_a_job_keeps_and_says_what_its_data_shows(context: services.Context) -> None:
    rows = made.notes(300, 22)
    training, validation = uploaded(context, "train", rows[:250]), uploaded(context, "valid", [*rows[250:], *rows[:10]])
    job = jobs.create(context.db, Job(ids.new(ids.JOB), 0, "validating_files", "tiny", training, validation, None, 7, {}))
    claimed = queue.claim(context.db, "worker", ("validating_files",))
    assert claimed is not None
    worker.validate(context, claimed, threading.Event())
    validated = jobs.get(context.db, job.id)
    assert validated.status == "queued" and validated.data_findings is not None
    leak, small = validated.data_findings
    assert leak["code"] == "leakage" and leak["evidence"]["pairs"] == [[n, 50 + n] for n in range(1, 11)] and leak["steps"] is None
    assert small["code"] == "small_validation"
    said = {event.key: event for event in records.events(context.db, job.id)}
    assert said["data:leakage"].level == "warn" and said["data:leakage"].message == f"{leak['message']} {leak['advice']}"
    assert said["data:small_validation"].level == "info" and list(said)[-1] == "validated"
