"""What a dashboard reads: lists, thinned curves, and the stream of a job as it goes, over the real API."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.api import views
from tunesmith.domain.jobs import Job
from tunesmith.domain.runs import MetricPoint
from tunesmith.services.curves import MIN_POINTS, SERIES, Thinned
from tunesmith.store import jobs
from tunesmith.store.records import MetricRow

from . import serving
from .serving import BASE, TRAIN, Parrot, Serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    with serving.serve(serving.settings(tmp_path), Parrot()) as running:
        yield running


@pytest.fixture
def http(server: Serving) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def create(http: httpx.Client, **fields: Any) -> str:
    training = http.post("/v1/files", files={"file": ("rows.jsonl", TRAIN)}, data={"purpose": "fine-tune"}).json()["id"]
    return str(http.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": training} | fields).json()["id"])


def start(server: Serving, http: httpx.Client, **fields: Any) -> Job:
    create(http, **fields)
    serving.validate(server.context)
    return serving.begin(server.context)


def events(http: httpx.Client, job_id: str, stop: int | None = None, **options: Any) -> Iterator[tuple[str, str | None, Any]]:
    """Give (name, id, data) of a job's stream as they come, until number `stop` or its end."""
    with http.stream("GET", f"/api/jobs/{job_id}/stream", **options) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                yield fields["event"], fields.get("id"), json.loads(fields["data"])
                if fields["event"] == "end" or (stop is not None and fields.get("id") == str(stop)):
                    return
                fields = {}


def say(server: Serving, job: Job, steps: range) -> Job:
    curve = [MetricPoint(step, 1000, step / 100, train_loss=2 / (step + 1)) for step in steps]
    return jobs.record(server.context.db, job.id, job.fence, points=curve, events=[point.event() for point in curve])


# --- the stream ---


def test_a_watcher_hears_everything_once_and_in_order(server: Serving, http: httpx.Client) -> None:
    job = start(server, http)
    heard = []

    def train() -> None:
        for step in range(1, 40):
            say(server, job, range(step, step + 1))
            time.sleep(0.01)
        serving.succeed(server.context, job)

    trainer = threading.Thread(target=train)
    for heard_one in events(http, job.id):
        if not heard:
            trainer.start()
        heard.append(heard_one)
    trainer.join()
    last = jobs.get(server.context.db, job.id).last_seq
    assert [int(id) for _, id, _ in heard if id] == list(range(1, last + 1))
    assert [name for name, _, _ in heard][-1] == "end"
    statuses = [data["status"] for name, _, data in heard if name == "job"]
    assert (statuses[0], statuses[-1]) == ("running", "succeeded")
    assert {data["step"] for name, _, data in heard if name == "metric" for data in [data["data"]]} == set(range(40))
    (first,) = (data for name, id, data in heard if id == "1")
    assert first["seq"] == 1 and first["message"].startswith("Created fine-tuning job")


def test_a_stream_goes_on_from_where_it_broke(server: Serving, http: httpx.Client) -> None:
    job = say(server, start(server, http), range(1, 30))
    first = [id for _, id, _ in events(http, job.id, stop=20) if id]
    say(server, job, range(30, 40))
    last = jobs.get(server.context.db, job.id).last_seq
    for options in (
        {"params": {"after": 20}},
        {"headers": {"last-event-id": "20"}},
        {"params": {"after": 3}, "headers": {"last-event-id": "20"}},
    ):
        rest = [id for _, id, _ in events(http, job.id, stop=last, **options) if id]
        assert [int(id) for id in first + rest] == list(range(1, last + 1))


def test_many_watchers_have_one_tail_and_it_ends_with_them(server: Serving, http: httpx.Client) -> None:
    job = say(server, start(server, http), range(1, 10))
    last = jobs.get(server.context.db, job.id).last_seq
    live = server.app.state.live
    watching = [events(http, job.id) for _ in range(5)]
    for watcher in watching:
        assert next(watcher)[1] == "1"
    (tail,) = live._tails.values()
    assert tail.watchers == 5
    for watcher in watching:
        watcher.close()  # type: ignore[attr-defined]
    say(server, job, range(10, 12))
    deadline = time.monotonic() + 20
    while live._tails:
        assert time.monotonic() < deadline, "the tail goes on with no watcher"
        time.sleep(0.05)
    assert [id for _, id, _ in events(http, job.id, stop=last + 4) if id][-1] == str(last + 4)


def test_streams_end_with_the_server(server: Serving, http: httpx.Client) -> None:
    watcher = events(http, start(server, http).id)
    next(watcher)
    began = time.monotonic()
    server.app.state.live.end()
    assert len(list(watcher)) < 10 and time.monotonic() - began < 2


def test_a_long_history_comes_in_pages(server: Serving, http: httpx.Client) -> None:
    job = start(server, http)
    for begin in range(1, 3001, 500):
        say(server, job, range(begin, begin + 500))
    last = jobs.get(server.context.db, job.id).last_seq
    assert [int(id) for _, id, _ in events(http, job.id, stop=last) if id] == list(range(1, last + 1))


def test_the_diagnosis_comes_with_the_job_and_again_when_it_changes(server: Serving, http: httpx.Client) -> None:
    job = start(server, http)
    heard: list[tuple[int, bool]] = []
    for name, _, data in events(http, job.id):
        if name == "diagnosis":
            heard.append((data["step"], data["final"]))
            assert data["verdict"] == http.get(f"/api/jobs/{job.id}/diagnosis").json()["verdict"]
        if heard == [(1, False), (2, False), (2, True)]:
            break
        if name in ("job", "diagnosis"):
            steps = len(heard) + 1
            if steps < 3:
                say(server, job, range(steps, steps + 1))
            serving.diagnose(server.context, job, final=steps == 3)


def test_streams_of_no_job_and_strange_positions(server: Serving, http: httpx.Client) -> None:
    assert http.get("/api/jobs/ftjob-none/stream").status_code == 404
    job = serving.succeed(server.context, start(server, http))
    assert http.get(f"/api/jobs/{job.id}/stream", params={"after": -1}).status_code == 400
    for odd in ("x", "", "-1", "9" * 400, "١"):
        names = [name for name, _, _ in events(http, job.id, headers={"last-event-id": odd.encode()})]
        assert names[-1] == "end" and "job" in names


# --- thinned curves ---


def row(seq: int, step: int, **values: float) -> MetricRow:
    return MetricRow(seq, 0.0, {"step": step, "total_steps": 1, "epoch": 0.0, **values})


def kept(rows: list[MetricRow], max_points: int) -> list[MetricRow]:
    thinned = Thinned(max_points)
    for one in rows:
        thinned.add(one)
    return thinned.rows()


@given(st.integers(0, 10_000), st.integers(1, 3000), st.integers(MIN_POINTS, 400))
@settings(max_examples=60, deadline=None)
def test_thinning_loses_no_extreme_and_never_takes_back(seed: int, count: int, max_points: int) -> None:
    draw = random.Random(seed)
    rows = [row(0, 0, full_valid_loss=1.0)]
    for step in range(1, count):
        values = {name: draw.gauss(0, 1) for name in SERIES if draw.random() < 0.7}
        rows.append(row(step, step, **values | ({"full_valid_loss": 1.0} if step % 100 == 0 else {})))
    now, before = kept(rows, max_points), kept(rows[: count * 2 // 3], max_points)
    assert len(now) <= max_points and now == sorted(now, key=lambda one: one.seq) and now[-1] == rows[-1]
    for name in SERIES:
        values = [one.data[name] for one in rows if name in one.data]
        shown = [one.data[name] for one in now if name in one.data]
        assert not values or (min(values), max(values)) == (min(shown), max(shown))
    assert [one for one in rows if "full_valid_loss" in one.data] == [one for one in now if "full_valid_loss" in one.data]
    # What is shown of the past later was shown then: nothing new appears in it, but for what was its unfinished end.
    edge = len(before) and max(1, count // 3)
    assert {one.seq for one in now if one.seq < edge} <= {one.seq for one in before}


def test_the_wire_has_every_figure_of_a_step() -> None:
    assert set(views.MetricData.model_fields) == {field.name for field in dataclasses.fields(MetricPoint)}


def test_few_points_are_all_kept() -> None:
    rows = [row(step, step, train_loss=float(step)) for step in range(400)]
    assert kept(rows, 4000) == rows


def test_thinned_metrics_over_http(server: Serving, http: httpx.Client) -> None:
    job = start(server, http)
    say(server, job, range(1, 900))
    whole = http.get(f"/api/jobs/{job.id}/metrics", params={"limit": 1000}).json()
    thinned = http.get(f"/api/jobs/{job.id}/metrics", params={"max_points": 200}).json()
    assert len(whole["data"]) == 899 > len(thinned["data"]) <= 200 and thinned["next"] == whole["next"] and not thinned["has_more"]
    assert all(one in whole["data"] for one in thinned["data"])
    moments = [one["created_at"] for one in whole["data"]]
    assert moments == sorted(moments) and abs(moments[-1] - time.time()) < 60
    say(server, job, range(900, 910))
    again = http.get(f"/api/jobs/{job.id}/metrics", params={"max_points": 200}).json()
    assert again["data"][-1]["data"]["step"] == 909 and again["data"][:25] == thinned["data"][:25]
    part = http.get(f"/api/jobs/{job.id}/metrics", params={"max_points": 200, "first_step": 100, "last_step": 120}).json()
    assert [one["data"]["step"] for one in part["data"]] == list(range(100, 121))
    for wrong in (
        {"max_points": 99},
        {"max_points": 10**6},
        {"max_points": 200, "after": 3},
        {"first_step": 3},
        {"last_step": -1, "max_points": 100},
    ):
        assert http.get(f"/api/jobs/{job.id}/metrics", params=wrong).status_code == 400


# --- lists ---


def test_the_list_of_jobs(server: Serving, http: httpx.Client) -> None:
    done = serving.succeed(server.context, start(server, http, suffix="Ärger 100%_x"))
    running = say(server, start(server, http), range(1, 8))
    verdict = serving.diagnose(server.context, running)
    waiting = [create(http) for _ in range(3)]
    for _ in waiting:
        serving.validate(server.context)
    body = http.get("/api/jobs").json()
    assert [line["id"] for line in body["data"]] == [*waiting[::-1], running.id, done.id]
    assert [line["queue_position"] for line in body["data"]] == [3, 2, 1, None, None]
    assert body["counts"] == {"queued": 3, "running": 1, "succeeded": 1}
    first, last = body["data"][3], body["data"][4]
    assert (first["step"], first["total_steps"], first["losses"], first["verdict"]) == (7, 1000, [], verdict)
    assert (last["base_loss"], last["loss"], last["losses"]) == (2.5, 0.05, [[0, 2.5], [6, 0.05]])
    assert [line["id"] for line in http.get("/api/jobs", params={"status": "running"}).json()["data"]] == [running.id]
    for words in ("Ärger 100%_X", done.id, "100%_"):
        assert [line["id"] for line in http.get("/api/jobs", params={"q": words}).json()["data"]] == [done.id], words
    assert http.get("/api/jobs", params={"q": "100%%"}).json()["data"] == []
    page = http.get("/api/jobs", params={"limit": 2, "after": waiting[1]}).json()
    assert [line["id"] for line in page["data"]] == [waiting[0], running.id] and page["has_more"]
    for wrong in ({"status": "done"}, {"limit": 0}, {"limit": 1001}, {"after": "x"}, {"q": "x" * 201}):
        assert http.get("/api/jobs", params=wrong).status_code == 400


def test_a_job_with_its_files_and_place(server: Serving, http: httpx.Client) -> None:
    job_id = create(http)
    shown = http.get(f"/api/jobs/{job_id}").json()
    assert shown["training_file"]["filename"] == "rows.jsonl" and shown["training_file"]["bytes"] == len(TRAIN)
    assert shown["validation_file"] is None and shown["job"]["id"] == job_id and shown["queue_position"] is None
    serving.validate(server.context)
    assert http.get(f"/api/jobs/{job_id}").json()["queue_position"] == 1
    http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    http.delete(f"/v1/files/{shown['training_file']['id']}")
    assert http.get(f"/api/jobs/{job_id}").json()["training_file"] == {"id": shown["training_file"]["id"], "filename": None, "bytes": None}


def test_files_and_who_uses_them(server: Serving, http: httpx.Client) -> None:
    done = serving.succeed(server.context, start(server, http))
    files = http.get("/api/files").json()["data"]
    roles = {file["filename"]: [(user["id"], user["role"], user["status"]) for user in file["used_by"]] for file in files}
    assert roles == {"rows.jsonl": [(done.id, "training", "succeeded")], "step_metrics.csv": [(done.id, "result", "succeeded")]}
    assert [file["filename"] for file in http.get("/api/files", params={"q": "ROWS"}).json()["data"]] == ["rows.jsonl"]
    assert [file["filename"] for file in http.get("/api/files", params={"purpose": "fine-tune-results"}).json()["data"]] == [
        "step_metrics.csv"
    ]


def test_models_and_where_they_come_from(server: Serving, http: httpx.Client) -> None:
    done = serving.succeed(server.context, start(server, http))
    models = http.get("/api/models").json()["data"]
    assert [(model["kind"], model["step"], model["is_checkpoint"]) for model in models] == [
        ("base", None, False), ("base", None, False), ("lora", 6, False), ("lora", 4, True), ("lora", 2, True),
    ]  # fmt: skip
    tuned = models[2]
    assert tuned["name"] == done.fine_tuned_model and tuned["base"] == BASE and tuned["job_id"] == done.id and tuned["bytes"] > 0
    assert tuned["training_file"]["filename"] == "rows.jsonl" and [user["id"] for user in models[1]["used_by"]] == [done.id]
    assert models[0]["bytes"] is None, "not fetched yet"
    answer = http.get(f"/api/models/{tuned['name']}/adapter")
    assert answer.headers["content-disposition"].startswith("attachment") and ":" not in answer.headers["content-disposition"].split("=")[1]
    assert zipfile.ZipFile(BytesIO(answer.content)).namelist() == ["adapter_config.json"]
    assert http.get(f"/api/models/{BASE}/adapter").status_code == 400
    assert http.get("/api/models/ft:none/adapter").status_code == 404
