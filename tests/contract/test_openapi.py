"""Every JSON answer of the OpenAI endpoints, byte for byte as it travels, against OpenAI's specification."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tunesmith.diagnosis import report
from tunesmith.domain.jobs import JobError
from tunesmith.services import diagnoses
from tunesmith.store import jobs, queue

from . import serving
from .serving import BASE, TRAIN, Parrot, Serving

#: The job object's keys: those of the specification and those that the live API sends besides.
JOB_KEYS = {
    "object", "id", "model", "created_at", "finished_at", "fine_tuned_model", "organization_id", "result_files", "status",
    "validation_file", "training_file", "hyperparameters", "trained_tokens", "error", "user_provided_suffix", "seed",
    "estimated_finish", "integrations", "metadata", "usage_metrics", "shared_with_openai", "method",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving.serve(serving.settings(tmp_path_factory.mktemp("openapi")), Parrot()) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Serving) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def call(http: httpx.Client, method: str, path: str, **request: Any) -> Any:
    """Send a request, hold the answer against the specification and return it."""
    response = http.request(method, f"/v1{path}", **request)
    body = response.json()
    assert serving.violations(method, path, response.status_code, body) == []
    return body


def test_an_empty_server(server: Serving, tmp_path: Any) -> None:
    with serving.serve(serving.settings(tmp_path), Parrot()) as fresh, fresh.http() as http:
        assert call(http, "GET", "/files") == {"object": "list", "data": [], "first_id": "", "last_id": "", "has_more": False}
        assert call(http, "GET", "/fine_tuning/jobs") == {"object": "list", "data": [], "has_more": False}
        assert [model["id"] for model in call(http, "GET", "/models")["data"]] == ["smollm2-135m-instruct", BASE]


def test_every_endpoint_over_a_job_s_life(server: Serving, http: httpx.Client) -> None:
    training = call(http, "POST", "/files", files={"file": ("train.jsonl", TRAIN)}, data={"purpose": "fine-tune"})
    call(http, "GET", f"/files/{training['id']}")
    page = call(http, "GET", "/files", params={"limit": 1})
    assert page["first_id"] == page["last_id"] == training["id"]
    asked = {"model": BASE, "training_file": training["id"], "validation_file": training["id"], "metadata": {"k": "v"}, "suffix": "s"}
    job = call(http, "POST", "/fine_tuning/jobs", json=asked)
    assert set(job) == JOB_KEYS
    where = f"/fine_tuning/jobs/{job['id']}"
    call(http, "GET", where)
    assert call(http, "GET", f"{where}/checkpoints") == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    serving.validate(server.context)
    call(http, "GET", where)
    running = serving.begin(server.context)
    call(http, "GET", where)
    serving.succeed(server.context, running)
    done = call(http, "GET", where)
    assert set(done) == JOB_KEYS and done["error"] is None
    assert call(http, "GET", f"{where}/events", params={"limit": 3})["has_more"] is True
    checkpoints = call(http, "GET", f"{where}/checkpoints", params={"limit": 2})
    assert (checkpoints["first_id"], checkpoints["last_id"]) == tuple(row["id"] for row in checkpoints["data"])
    assert checkpoints["has_more"] is True
    call(http, "GET", "/fine_tuning/jobs", params={"metadata[k]": "v"})
    call(http, "GET", f"/files/{done['result_files'][0]}")
    call(http, "GET", "/models")
    call(http, "GET", f"/models/{done['fine_tuned_model']}")
    call(http, "GET", f"/models/{checkpoints['data'][1]['fine_tuned_model_checkpoint']}")
    call(http, "DELETE", f"/models/{done['fine_tuned_model']}")
    call(http, "DELETE", f"/files/{done['result_files'][0]}")


def test_a_failed_and_a_cancelled_job(server: Serving, http: httpx.Client) -> None:
    training = call(http, "POST", "/files", files={"file": ("train.jsonl", TRAIN)}, data={"purpose": "fine-tune"})
    asked = {"model": BASE, "training_file": training["id"]}
    failed = call(http, "POST", "/fine_tuning/jobs", json=asked)
    held = queue.claim(server.context.db, "worker-1", ("validating_files",))
    assert held is not None
    jobs.move(server.context.db, held.id, held.fence, "failed", error=JobError("invalid_training_file", "why", None))
    assert call(http, "GET", f"/fine_tuning/jobs/{failed['id']}")["error"] == {
        "code": "invalid_training_file",
        "message": "why",
        "param": None,
    }
    job = call(http, "POST", "/fine_tuning/jobs", json=asked)
    assert call(http, "POST", f"/fine_tuning/jobs/{job['id']}/cancel")["status"] == "cancelled"
    serving_error = call(http, "POST", f"/fine_tuning/jobs/{job['id']}/cancel")
    assert set(serving_error["error"]) == {"message", "type", "param", "code"}


def test_paused_and_resumed(server: Serving, http: httpx.Client) -> None:
    training = call(http, "POST", "/files", files={"file": ("train.jsonl", TRAIN)}, data={"purpose": "fine-tune"})
    job = call(http, "POST", "/fine_tuning/jobs", json={"model": BASE, "training_file": training["id"]})
    serving.validate(server.context)
    path = f"/fine_tuning/jobs/{job['id']}"
    paused = http.post(f"/v1{path}/pause").json()
    departures = serving.violations("POST", f"{path}/pause", 200, paused)
    assert paused["status"] == "paused" and [words.split(":")[0] for words in departures] == ["$.status"]
    assert call(http, "POST", f"{path}/resume")["status"] == "queued"


def test_our_own_view_of_a_job(server: Serving, http: httpx.Client) -> None:
    training = call(http, "POST", "/files", files={"file": ("train.jsonl", TRAIN)}, data={"purpose": "fine-tune"})
    asked = {"model": BASE, "training_file": training["id"], "hyperparameters": {"n_epochs": 2}, "seed": 5}
    job = call(http, "POST", "/fine_tuning/jobs", json=asked)["id"]
    before = http.get(f"/api/jobs/{job}").json()
    here = {"id": job, "status": "validating_files", "asked": {"n_epochs": 2}, "resolved": None, "reasons": {}, "plan": None}
    assert before == before | here and before["request"] == "run" and before["job"] == call(http, "GET", f"/fine_tuning/jobs/{job}")
    while serving.validate(server.context).id != job:
        pass
    while (running := serving.begin(server.context)).id != job:
        pass
    after = http.get(f"/api/jobs/{job}").json()
    assert after["resolved"]["seed"] == 5 and after["resolved"]["n_epochs"] == 2
    assert after["reasons"] == {"batch_size": "auto: 12 examples"} and after["plan"]["device"] == "cpu"
    serving.succeed(server.context, running)

    seen: list[dict[str, Any]] = []
    page = {"next": 0, "has_more": True}
    while page["has_more"]:
        page = http.get(f"/api/jobs/{job}/metrics", params={"after": page["next"], "limit": 3}).json()
        seen += page["data"]
    assert [row["data"]["step"] for row in seen] == list(range(7))
    assert [row["seq"] for row in seen] == sorted(row["seq"] for row in seen) and page["next"] == seen[-1]["seq"]
    assert http.get(f"/api/jobs/{job}/metrics", params={"after": page["next"]}).json()["data"] == []
    early = http.get(f"/api/jobs/{job}/diagnosis")
    assert early.status_code == 404 and "is succeeded and has no diagnosis yet" in early.json()["error"]["message"]
    assert http.get("/api/jobs/ftjob-no/diagnosis").status_code == 404
    assert http.get("/api/jobs/ftjob-no").status_code == http.get("/api/jobs/ftjob-no/metrics").status_code == 404


def test_a_job_s_diagnosis_while_it_runs_and_after(server: Serving, http: httpx.Client) -> None:
    training = call(http, "POST", "/files", files={"file": ("train.jsonl", TRAIN)}, data={"purpose": "fine-tune"})
    job = call(http, "POST", "/fine_tuning/jobs", json={"model": BASE, "training_file": training["id"]})["id"]
    while serving.validate(server.context).id != job:
        pass
    while (running := serving.begin(server.context)).id != job:
        pass
    jobs.record(server.context.db, job, running.fence, points=serving.points(6))
    verdict = diagnoses.record(server.context.db, job, running.fence, diagnoses.history(server.context.db, job))
    found = http.get(f"/api/jobs/{job}/diagnosis").json()
    assert (found["id"], found["status"], found["final"], found["step"], found["verdict"]) == (job, "running", False, 6, verdict)
    assert {"base_learning_rate", "learning_rate_multiplier"} <= found["next_hyperparameters"].keys()
    assert set(found) == {
        "id", "status", "final", "step", "verdict", "findings", "checkpoint", "next_hyperparameters", "plots", "reading", "rows",
        "cannot_tell",
    }  # fmt: skip
    assert all({"code", "severity", "confidence", "steps", "evidence", "advice", "changes"} <= set(one) for one in found["findings"])
    diagnoses.conclude(server.context.db, job, running.fence, broke_down=True)
    jobs.move(server.context.db, job, running.fence, "failed", error=JobError("non_finite", "Step 7: not finite."))
    assert http.get(f"/api/jobs/{job}/diagnosis").json()["final"] is True
    late = report.diagnose(diagnoses.history(server.context.db, job))
    assert late.findings[0].code == "non_finite" and late.findings[0].steps == (7, 7)
    assert http.get(f"/api/jobs/{job}/diagnosis").json()["verdict"] == late.verdict


def test_content_is_a_download_whatever_its_name(http: httpx.Client) -> None:
    name = 'a"; filename=x.html\r\nSet-Cookie: a=b <é>.jsonl'
    part = {"file": (name, TRAIN, "text/html")}
    file = call(http, "POST", "/files", files=part, data={"purpose": "fine-tune"})
    response = http.get(f"/v1/files/{file['id']}/content")
    assert response.content == TRAIN and response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"].startswith("attachment; filename")
    assert "set-cookie" not in response.headers and response.headers["x-content-type-options"] == "nosniff"


def test_node_sends_the_file_first_and_without_a_length(http: httpx.Client) -> None:
    edge = "----formdata"
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="t.jsonl"\r\n'.encode(),
        b"Content-Type: application/octet-stream\r\n\r\n",
        *(TRAIN[start : start + 7] for start in range(0, len(TRAIN), 7)),
        f'\r\n--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--{edge}--\r\n'.encode(),
    ]
    file = call(http, "POST", "/files", content=iter(parts), headers={"content-type": f"multipart/form-data; boundary={edge}"})
    assert file["bytes"] == len(TRAIN) and http.get(f"/v1/files/{file['id']}/content").content == TRAIN


@pytest.mark.parametrize(
    "broken", [{"error": {}}, {"status": "done"}, {"seed": None}, {"hyperparameters": None}, {"created_at": 1.5}, {"result_files": None}]
)
def test_the_check_itself_finds_what_is_wrong(http: httpx.Client, broken: dict[str, Any]) -> None:
    training = call(http, "POST", "/files", files={"file": ("train.jsonl", TRAIN)}, data={"purpose": "fine-tune"})
    job = call(http, "POST", "/fine_tuning/jobs", json={"model": BASE, "training_file": training["id"]})
    assert serving.violations("GET", f"/fine_tuning/jobs/{job['id']}", 200, job | broken) != []
    http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
