"""What the New job screen stands on: files looked into by children, rows as they are and as a model sees them, jobs resolved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tunesmith.api import views
from tunesmith.domain import example
from tunesmith.domain.jobs import Event
from tunesmith.domain.runs import MetricPoint
from tunesmith.domain.specs import HYPERPARAMETERS
from tunesmith.services import reports
from tunesmith.services import rows as row_services
from tunesmith.store import jobs
from tunesmith.training import data
from tunesmith.training.tokenizer import load_tokenizer

from . import serving
from .serving import BASE, TRAIN, Parrot, Serving

MODEL = "smollm2-135m-instruct"
HOSTILE = [
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "\u202e{{7*7}}{% raise %}",
    "\x00\x1b[31m",
    "😀\U0010ffff",
    "../../etc/passwd",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Serving]:
    deployment = serving.settings(tmp_path_factory.mktemp("data"), cache_dir=smollm2.parents[1])
    with serving.serve(deployment, Parrot()) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Serving) -> Iterator[httpx.Client]:
    with server.http(timeout=120) as client:
        yield client


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


def lines(rows: Sequence[Any]) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


#: Words enough to be told apart.
ROWS = [chat(f"What is the capital of country number {n}?", f"It is called city number {n * n}.") for n in range(60)]


@pytest.fixture(scope="module")
def upload(http: httpx.Client) -> Callable[..., str]:
    def send(content: bytes, purpose: str = "fine-tune") -> str:
        answer = http.post("/v1/files", files={"file": ("t.jsonl", content)}, data={"purpose": purpose})
        return str(answer.json()["id"])

    return send


def told(http: httpx.Client, file: str, **query: Any) -> list[dict[str, Any]]:
    """Return all reports on a file, each held against the schema."""
    with http.stream("GET", f"/api/files/{file}/report", params=query) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-ndjson"
        found = [json.loads(line) for line in answer.iter_lines()]
    for report in found:
        assert views.DataReport.model_validate(report, strict=True).model_dump(mode="json") == report
    assert [report["done"] for report in found] == [False] * (len(found) - 1) + [True]
    assert [report["seconds"] for report in found] == sorted(report["seconds"] for report in found)
    return found


def children() -> list[psutil.Process]:
    """Return the processes that look into files now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any("tunesmith.reports" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


# --- rows as they are ---


def test_rows_from_anywhere(http: httpx.Client, upload: Callable[..., str]) -> None:
    file = upload(b"\xef\xbb\xbf" + lines([{"n": n} for n in range(250)]).replace(b"\n", b"\r\n") + b"\n \n")
    for offset, limit in ((0, 20), (0, 100), (99, 100), (240, 50), (249, 1), (250, 5), (2**31 - 1, 1)):
        answer = http.get(f"/api/files/{file}/rows", params={"offset": offset, "limit": limit}).json()
        wanted = range(offset, min(offset + limit, 250))
        assert answer == {"total": 250, "data": [{"line": n + 1, "data": {"n": n}, "error": None} for n in wanted]}


@pytest.mark.parametrize(("chunk", "end"), [(1, b""), (1, b"\n"), (7, b""), (2**20, b"\n\n\n")])
def test_rows_do_not_depend_on_the_chunks(
    http: httpx.Client, upload: Callable[..., str], monkeypatch: pytest.MonkeyPatch, chunk: int, end: bytes
) -> None:
    monkeypatch.setattr(row_services, "_CHUNK", chunk)
    file = upload(lines([{"n": n} for n in range(9)]).rstrip() + end)
    for offset in range(10):
        answer = http.get(f"/api/files/{file}/rows", params={"offset": offset, "limit": 3}).json()
        assert answer["total"] == 9 and [row["line"] for row in answer["data"]] == [*range(offset + 1, min(offset + 4, 10))]


def test_lines_that_are_no_rows(http: httpx.Client, upload: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_services.datasets, "MAX_LINE_BYTES", 5000)
    deep = b'{"a":' * 200 + b"1" + b"}" * 200
    file = upload(b'step,loss\n{"a": 1}\n\n[2]\n' + b"x" * 9000 + b"\n" + deep + b'\n"\xff"\n{"b": NaN}', "user_data")
    answer = http.get(f"/api/files/{file}/rows").json()
    assert [(row["line"], row["data"]) for row in answer["data"]] == [(n, {"a": 1} if n == 2 else None) for n in range(1, 9)]
    errors = [row["error"] or "" for row in answer["data"]]
    assert "not valid JSON" in errors[0] and "not a JSON object" in errors[3] and "5000 bytes" in errors[4] and "levels deep" in errors[5]


def test_long_lines_come_few_at_a_time(http: httpx.Client, upload: Callable[..., str]) -> None:
    file = upload(lines([{"n": n, "text": "x" * 900_000} for n in range(6)]))
    first = http.get(f"/api/files/{file}/rows").json()
    assert [row["line"] for row in first["data"]] == [1, 2, 3] and first["total"] == 6
    assert [row["line"] for row in http.get(f"/api/files/{file}/rows", params={"offset": 3}).json()["data"]] == [4, 5, 6]


# --- reports ---


def test_errors_by_line(http: httpx.Client, upload: Callable[..., str]) -> None:
    rows = [dict(row) for row in ROWS]
    rows[2] = {"text": "x"}
    rows[6] = chat("?", "")
    rows[6]["messages"][0]["role"] = "usr"
    (report,) = told(http, upload(lines(rows)), model=MODEL)
    assert [error["line"] for error in report["errors"]] == [3, 7] and report["num_errors"] == 2 and report["stage"] == "errors"
    assert "missing key 'messages'" in report["errors"][0]["message"] and "'usr'" in report["errors"][1]["message"]
    assert (report["rows"], report["format"], report["tokens"], report["findings"]) == (60, "chat", None, None)


def test_many_errors_are_counted(http: httpx.Client, upload: Callable[..., str]) -> None:
    report = told(http, upload(lines([{"text": n} for n in range(250)])))[-1]
    assert [error["line"] for error in report["errors"]] == [*range(1, 101)] and report["num_errors"] == 250 and report["format"] is None


def test_too_few_rows(http: httpx.Client, upload: Callable[..., str]) -> None:
    report = told(http, upload(lines(ROWS[:5])))[-1]
    assert report["num_errors"] == 1 and report["errors"][0]["line"] is None and "5 example(s)" in report["errors"][0]["message"]


def test_without_a_model_the_data_is_examined(http: httpx.Client, upload: Callable[..., str]) -> None:
    validation = upload(lines([*ROWS[:3], *(chat(f"Which river flows through place {n}?", f"River {n} does.") for n in range(30))]))
    reports_ = told(http, upload(lines([*ROWS, ROWS[5]])), validation_file=validation)
    assert reports_[0]["stage"] == "errors" and reports_[0]["findings"] is None
    last = reports_[-1]
    assert (last["stage"], last["rows"], last["validation_rows"], last["tokens"], last["notes"]) == ("exact", 61, 33, None, [])
    leaks = [finding["evidence"]["pairs"] for finding in last["findings"] if finding["code"] == "leakage"]
    assert [[1, 1], [2, 2], [3, 3]] in leaks
    assert [finding["evidence"]["pairs"] for finding in last["findings"] if finding["code"] == "duplicates"] == [[[6, 61]]]


def test_a_validation_file_with_errors_is_not_compared(http: httpx.Client, upload: Callable[..., str]) -> None:
    last = told(http, upload(lines(ROWS)), validation_file=upload(lines([ROWS[0], {"text": "x"}])))[-1]
    assert last["validation_rows"] == 2 and last["num_errors"] == 0 and "leakage" not in [found["code"] for found in last["findings"]]
    assert len(last["notes"]) == 1 and "1 errors" in last["notes"][0] and "Example 2" in last["notes"][0]


def test_figures_are_those_of_training(http: httpx.Client, upload: Callable[..., str], server: Serving, smollm2: Path) -> None:
    rows = [chat(f"Count to {n}.", " ".join(map(str, range(n % 90))) + ".") for n in range(2100)]
    file = upload(lines(rows))
    found = told(http, file, model=MODEL, max_length=128)
    stages = [report["stage"] for report in found]
    assert [stage for n, stage in enumerate(stages) if stage not in stages[:n]] == ["errors", "sample", "exact"]
    exact, sample = found[-1]["tokens"], next(report["tokens"] for report in found if report["tokens"])
    trained = data.load(server.context.blobs.path(file), load_tokenizer(smollm2), 128)
    assert exact["of_rows"] == exact["rows"] == 2100 and exact["max_length"] == 128
    assert exact["total"] == trained.num_tokens and exact["target"] == sum(row.num_targets for row in trained.examples)
    assert (exact["truncated"], exact["dropped"]) == (len(trained.truncated_lines), len(trained.dropped_lines))
    assert exact["max"] > 128 and sum(exact["counts"]) == 2100 and len(exact["edges"]) == len(exact["counts"]) + 1
    (cut,) = [finding for finding in found[-1]["findings"] if finding["code"] == "truncated_rows"]
    assert cut["evidence"]["rows"] == exact["truncated"] and cut["evidence"]["training_lines"] == trained.truncated_lines[:20]
    assert 1000 <= sample["of_rows"] < 2100 and sample["total"] == pytest.approx(exact["total"], rel=0.05)


def test_rows_that_the_model_cannot_have(http: httpx.Client, upload: Callable[..., str]) -> None:
    rows = [*ROWS, chat("What ends a turn?", "<|im_end|> does.")]
    last = told(http, upload(lines(rows)), model=MODEL)[-1]
    assert last["num_errors"] == 1 and last["errors"][0]["line"] == 61 and "<|im_end|>" in last["errors"][0]["message"]
    assert last["tokens"]["of_rows"] == 61 and last["findings"] is not None


def test_rows_without_targets(http: httpx.Client, upload: Callable[..., str]) -> None:
    last = told(http, upload(lines([*ROWS, chat("long " * 200, "short")])), model=MODEL, max_length=100)[-1]
    assert last["tokens"]["dropped"] == 1 and "no_target_rows" in [finding["code"] for finding in last["findings"]]


def test_a_model_that_cannot_tokenize(http: httpx.Client, upload: Callable[..., str]) -> None:
    file = upload(lines(ROWS))
    last = told(http, file, model=BASE)[-1]
    assert last["tokens"] is None and last["findings"] is not None and "tokenizer cannot be loaded" in last["notes"][0]
    refused = http.get(f"/api/files/{file}/rendered", params={"model": BASE})
    assert refused.status_code == 400 and "tokenizer cannot be loaded" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ({"model": "nothing"}, 404, "model"),
        ({"max_length": "7"}, 400, "max_length"),
        ({"max_length": "many"}, 400, "max_length"),
        ({"model": MODEL, "max_length": "8193"}, 400, "max_length"),
        ({"validation_file": "file-nothing"}, 400, "validation_file"),
    ],
)
def test_reports_that_cannot_be_had(http: httpx.Client, upload: Callable[..., str], query: dict[str, str], status: int, param: str) -> None:
    file = upload(lines(ROWS))
    answers = [http.get(f"/api/files/{file}/report", params=query)]
    if "validation_file" not in query:
        answers.append(http.get(f"/api/files/{file}/rendered", params={"model": MODEL} | query))
    assert [(answer.status_code, answer.json()["error"]["param"]) for answer in answers] == [(status, param)] * len(answers)


def test_files_that_cannot_be_looked_into(http: httpx.Client, upload: Callable[..., str]) -> None:
    other = upload(b"x", "user_data")
    for path in ("report", "rendered"):
        assert http.get(f"/api/files/file-nothing/{path}", params={"model": MODEL}).status_code == 404
        refused = http.get(f"/api/files/{other}/{path}", params={"model": MODEL})
        assert refused.status_code == 400 and "purpose" in refused.json()["error"]["message"]
    assert http.get("/api/files/file-nothing/rows").status_code == 404
    for path, query in (
        ("rows", {"offset": -1}), ("rows", {"limit": 0}), ("rows", {"limit": 101}), ("rows", {"offset": 2**31}),
        ("rendered", {"limit": 51}), ("rendered", {"limit": 0}), ("rendered", {"offset": "x"}), ("rendered", {"model": ""}),
    ):  # fmt: skip
        refused = http.get(f"/api/files/{other}/{path}", params={"model": MODEL} | query)
        assert refused.status_code in (400, 404), (path, query)
        assert refused.json()["error"]["param"] == next(iter(query)) or query == {"model": ""}
    missing = http.get(f"/api/files/{other}/rendered").json()["error"]
    assert missing["param"] == "model" and missing["code"] == "missing_required_parameter"


# --- the children ---


def test_who_hangs_up_ends_the_children(server: Serving, upload: Callable[..., str]) -> None:
    file = upload(lines([chat("say " * 400 + str(n), "so " * 400) for n in range(2500)]))
    assert not children()
    with server.http() as client, client.stream("GET", f"/api/files/{file}/report", params={"model": MODEL}) as answer:
        coming = answer.iter_lines()
        assert json.loads(next(coming))["rows"] == 2500 and children()
    _gone()
    with server.http() as client, pytest.raises(httpx.ReadTimeout):
        client.get(f"/api/files/{file}/rendered", params={"model": MODEL}, timeout=0.3)
    _gone()


def test_abandoned_reports_leave_room_for_others(server: Serving, http: httpx.Client, upload: Callable[..., str]) -> None:
    file = upload(lines([chat(f"{n}?", f"{n}!") for n in range(12_000)]))
    for _ in range(reports._MOST_CHILDREN + 2):
        with server.http() as hasty, hasty.stream("GET", f"/api/files/{file}/report") as response:
            next(response.iter_lines())
    _gone()
    assert not reports._children and told(http, file)[-1]["done"]


def _gone() -> None:
    deadline = time.monotonic() + 3
    while children():
        assert time.monotonic() < deadline, children()
        time.sleep(0.02)


def test_a_child_that_takes_too_long_is_ended(http: httpx.Client, upload: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = upload(lines(ROWS))
    monkeypatch.setattr(reports, "LIMIT_SECONDS", 0.01)
    last = told(http, file, model=MODEL)[-1]
    assert last["tokens"] is None and last["findings"] is None and "ended after" in last["notes"][0]
    refused = http.get(f"/api/files/{file}/rendered", params={"model": MODEL})
    assert refused.status_code == 503 and not children()


def test_only_so_many_children_at_once(http: httpx.Client, upload: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = upload(lines(ROWS))
    monkeypatch.setattr(reports, "_MOST_CHILDREN", 0)
    assert http.get(f"/api/files/{file}/rendered", params={"model": MODEL}).status_code == 503
    assert "the most at once" in told(http, file)[-1]["notes"][0]


# --- rows as the model sees them ---


def rendered(http: httpx.Client, file: str, **query: Any) -> Any:
    answer = http.get(f"/api/files/{file}/rendered", params={"model": MODEL} | query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_targets_are_answers_with_their_end_of_turn(http: httpx.Client, upload: Callable[..., str], smollm2: Path) -> None:
    talk = {"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "Groß 😀."},
        {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "No.", "weight": 0},
        {"role": "user", "content": "Then?"}, {"role": "assistant", "content": "Yes."},
    ]}  # fmt: skip
    file = upload(lines([*ROWS[:20], talk, {"prompt": "a", "completion": "b"}]))
    answer = rendered(http, file, offset=19, limit=50)
    assert answer["total"] == 22 and answer["max_length"] == 2048 and [row["line"] for row in answer["data"]] == [20, 21, 22]
    one, several, other = answer["data"]
    assert [span["text"] for span in one["spans"] if span["is_target"]] == ["It is called city number 361.<|im_end|>"]
    assert [span["text"] for span in several["spans"] if span["is_target"]] == ["Groß 😀.<|im_end|>", "Yes.<|im_end|>"]
    whole = "".join(span["text"] for span in several["spans"])
    assert whole.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGröße?<|im_end|>\n<|im_start|>assistant\nGroß")
    tokenizer = load_tokenizer(smollm2)
    assert sum(span["tokens"] for span in several["spans"]) == several["num_tokens"] == len(tokenizer(whole)["input_ids"])
    assert sum(span["tokens"] for span in several["spans"] if span["is_target"]) == several["num_targets"] and not several["truncated"]
    assert "examples before it" not in (other["error"] or "") and other["spans"][-1]["is_target"]


def test_rows_that_are_cut_and_rows_that_are_wrong(http: httpx.Client, upload: Callable[..., str]) -> None:
    file = upload(lines([chat("Count.", " ".join(map(str, range(100)))), {"text": 1}, chat("a", "<|im_start|>"), *ROWS]))
    cut, wrong, special = rendered(http, file, limit=3, max_length=50)["data"]
    assert cut["truncated"] and cut["num_tokens"] > 50 == sum(span["tokens"] for span in cut["spans"])
    assert cut["num_targets"] == cut["spans"][-1]["tokens"] and not cut["spans"][-1]["text"].endswith("<|im_end|>")
    assert wrong["spans"] == [] and wrong["error"].startswith("Example 2 is missing key 'messages'")
    assert special["spans"] == [] and "Example 3, message 2" in special["error"]
    assert rendered(http, file, offset=500)["data"] == []


def test_hostile_text_is_only_text(http: httpx.Client, upload: Callable[..., str]) -> None:
    rows = [chat(text, text) for text in HOSTILE] + ROWS
    file = upload(lines(rows))
    answer = http.get(f"/api/files/{file}/rows", params={"limit": len(HOSTILE)})
    assert [row["data"] for row in answer.json()["data"]] == rows[: len(HOSTILE)]
    assert answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    for text, row in zip(HOSTILE, rendered(http, file, limit=len(HOSTILE))["data"], strict=True):
        assert [span["text"] for span in row["spans"] if span["is_target"]] == [f"{text}<|im_end|>"], row
    bad = upload(lines([{text: 1} for text in HOSTILE]))
    (report,) = told(http, bad)
    assert [error["line"] for error in report["errors"]] == [1, 2, 3, 4, 5, 6] and HOSTILE[0] in report["errors"][0]["message"]


# --- hyperparameters and jobs before they are made ---


def test_hyperparameters_are_those_of_the_table(http: httpx.Client) -> None:
    listed = http.get("/api/hyperparameters").json()
    assert [(row["name"], row["default"], row["accepted"]) for row in listed] == [
        (h.name, h.api_default, h.accepted) for h in HYPERPARAMETERS
    ]
    assert next(row for row in listed if row["name"] == "tuning")["choices"] == ["auto", "lora", "full"]


def test_a_job_is_resolved_as_it_would_be(http: httpx.Client, upload: Callable[..., str], server: Serving) -> None:
    file = upload(lines(ROWS))
    body = {"model": "gpt-4o-mini", "training_file": file, "hyperparameters": {"n_epochs": 2, "batch_size": 7}, "seed": 5}
    before = len(jobs.list_page(server.context.db, limit=1000).items)
    answer = http.post("/api/jobs/resolve", json=body).json()
    assert (answer["model"], answer["num_training"], answer["num_validation"]) == (BASE, 60, 0)
    assert answer["total_steps"] == 18 and answer["resolved"]["seed"] == 5 and answer["reasons"]["n_epochs"] == "asked"
    assert set(answer["resolved"]) == {h.name for h in HYPERPARAMETERS} == set(answer["reasons"])
    split = http.post("/api/jobs/resolve", json=body | {"hyperparameters": {"training_split": 0.75, "n_steps": 4}}).json()
    assert (split["num_training"], split["num_validation"], split["total_steps"]) == (45, 15, 4)
    steep = http.post("/api/jobs/resolve", json=body | {"model": MODEL, "hyperparameters": {"learning_rate_multiplier": 26}}).json()
    assert steep["warnings"] == [] and "asked" in steep["reasons"]["learning_rate_multiplier"]
    assert len(jobs.list_page(server.context.db, limit=1000).items) == before


def test_what_creating_refuses_resolving_refuses(http: httpx.Client, upload: Callable[..., str]) -> None:
    file, other = upload(lines(ROWS)), upload(b"x", "user_data")
    good = {"model": MODEL, "training_file": file}
    bad: list[dict[str, Any]] = [
        {"model": "nothing"}, {"model": ""}, {"training_file": "file-nothing"}, {"training_file": other}, {"validation_file": other},
        {"suffix": "a:b"}, {"suffix": "x" * 65}, {"seed": -1}, {"seed": "1"}, {"hyperparameters": {"n_epochs": 0}},
        {"hyperparameters": {"n_epoch": 3}}, {"hyperparameters": {"learning_rate_multiplier": 1, "base_learning_rate": 1}},
        {"hyperparameters": {"select_by": "full_valid_loss"}}, {"hyperparameters": {"n_epochs": None}}, {"method": {"type": "dpo"}},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"lora_rank": "big"}}}}, {"integrations": [1]}, {"nothing": 1},
    ]  # fmt: skip
    for change in bad:
        created, resolved = (http.post(path, json=good | change) for path in ("/v1/fine_tuning/jobs", "/api/jobs/resolve"))
        assert created.status_code == resolved.status_code == 400, change
        assert created.json() == resolved.json(), change
    longer = http.post("/api/jobs/resolve", json=good | {"hyperparameters": {"max_length": 9000}})
    assert longer.status_code == 400 and longer.json()["error"]["param"] == "max_length"
    assert http.post("/api/jobs/resolve", params={"tokens_per_pass": -1}, json=good).json()["error"]["param"] == "tokens_per_pass"


def test_a_base_that_is_not_fetched_yet(tmp_path: Path) -> None:
    with serving.serve(serving.settings(tmp_path, allowed_models=("org/model",)), Parrot()) as fresh, fresh.http() as http:
        file = http.post("/v1/files", files={"file": ("t", TRAIN)}, data={"purpose": "fine-tune"}).json()["id"]
        catalogued = http.post("/api/jobs/resolve", json={"model": MODEL, "training_file": file}).json()
        assert catalogued["resolved"]["max_length"] == 2048 and catalogued["estimate"]["memory_bytes"] > 5e8
        refused = http.post("/api/jobs/resolve", json={"model": "org/model", "training_file": file})
        assert refused.status_code == 503 and "not on this server yet" in refused.json()["error"]["message"]


def test_estimates_go_by_what_ran_here(http: httpx.Client, upload: Callable[..., str], server: Serving) -> None:
    file = upload(lines(ROWS * 40))
    body = {"model": MODEL, "training_file": file, "hyperparameters": {"n_epochs": 1, "batch_size": 16}}

    def estimate(**query: Any) -> Any:
        return http.post("/api/jobs/resolve", json=body, params=query).json()["estimate"]

    rough = estimate()
    assert (
        rough["seconds_basis"].startswith("rough") and "bytes each" in rough["seconds_basis"] and rough["memory_basis"].startswith("rough")
    )
    job = http.post("/v1/fine_tuning/jobs", json=body).json()
    while serving.validate(server.context).id != job["id"]:
        pass
    running = serving.begin(server.context)
    while running.id != job["id"]:
        running = serving.begin(server.context)
    points = [MetricPoint(step, 60, step / 60, train_loss=1.0, tokens_per_second=speed) for step, speed in enumerate((100, 200, 300), 1)]
    parts = {"now": 1e9, "fixed": 1e8, "per_token": 1e5, "most_tokens": 4096}
    jobs.record(server.context.db, running.id, running.fence, points=points, events=[Event("Memory: ...", "memory", data=parts)])
    known = estimate(tokens_per_pass=200_000)
    assert job["id"] in known["seconds_basis"] and "200 tokens/s" in known["seconds_basis"] and "bytes each" not in known["seconds_basis"]
    assert known["seconds"] == pytest.approx(200_000 / 200, rel=0.02)
    step = 200_000 / 2400 * 16
    assert known["memory_bytes"] == pytest.approx(1.1e9 + 1e5 * 1.3 * step, rel=0.01) and job["id"] in known["memory_basis"]


# --- the example ---


def test_the_example_is_one_request_away(http: httpx.Client, server: Serving) -> None:
    first, second = (http.post("/api/example") for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert serving.violations("POST", "/fine_tuning/jobs", 200, first.json()) == []
    one, two = first.json(), second.json()
    assert one["id"] != two["id"] and (one["training_file"], one["validation_file"]) == (two["training_file"], two["validation_file"])
    assert one["model"] == MODEL and one["user_provided_suffix"] == example.SUFFIX and one["hyperparameters"] == example.HYPERPARAMETERS
    for name, file in (("train", one["training_file"]), ("valid", one["validation_file"])):
        assert server.context.blobs.path(file).read_bytes() == (example.FOLDER / f"{name}.jsonl").read_bytes()
    for job in (one, two):
        http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")


def test_an_example_that_is_not_installed(http: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(example, "FOLDER", tmp_path)
    refused = http.post("/api/example")
    assert refused.status_code == 503 and "examples/support-triage" in refused.json()["error"]["message"]
