"""Whatever is wrong with a request, the answer is OpenAI's envelope, and its message stands on its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from . import serving
from .serving import BASE, TRAIN, Parrot, Serving

MAX_FILE = 2 * 2**20
MAX_BODY = 64 * 1024
JSON = {"content-type": "application/json"}
CHAT = {"model": BASE, "messages": [{"role": "user", "content": "?"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    small = serving.settings(tmp_path_factory.mktemp("errors"), max_file_bytes=MAX_FILE, max_body_bytes=MAX_BODY)
    with serving.serve(small, Parrot()) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Serving) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


@pytest.fixture(scope="module")
def training(http: httpx.Client) -> str:
    return upload(http, TRAIN).json()["id"]


def _method(hyperparameters: object) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}}


def upload(http: httpx.Client, content: bytes, **fields: str) -> httpx.Response:
    return http.post("/v1/files", files={"file": ("train.jsonl", content)}, data={"purpose": "fine-tune"} | fields)


def told(response: httpx.Response, status: int, param: str | None = None) -> str:
    """Check the envelope and return the message."""
    assert response.status_code == status, response.text
    assert serving.violations("GET", "", status, response.json()) == []
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert len(error["message"]) > 20 and error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    for header in ("x-request-id", "openai-processing-ms", "openai-version"):
        assert header in response.headers
    assert response.headers["x-request-id"].startswith("req_")
    return str(error["message"])


@pytest.mark.parametrize(
    ("method", "path", "status", "param", "words"),
    [
        ("GET", "/v1/nothing", 404, None, "Invalid URL (GET /v1/nothing)"),
        ("GET", "/v1/files/", 404, None, "Invalid URL"),
        ("PUT", "/v1/files", 405, None, "Accepted here: GET, POST."),
        ("PATCH", "/v1/models/x", 405, None, "Accepted here: DELETE, GET."),
        ("GET", "/v1/files/file-x", 404, "id", "No such File object: file-x"),
        ("DELETE", "/v1/files/..%2F..%2Fapi_key.sha256", 404, None, "Invalid URL"),
        ("GET", "/v1/files/%2e%2e/content", 404, "id", "No such File object"),
        ("GET", "/v1/models/no%2Fsuch", 404, "model", "The model 'no/such' does not exist"),
        ("DELETE", "/v1/models/ft:a:b:c:d", 404, "model", "does not exist"),
        ("GET", "/v1/fine_tuning/jobs/123", 404, "fine_tune_id", "Could not find fine tune: 123"),
        ("GET", "/v1/fine_tuning/jobs/123/events", 404, "fine_tune_id", "Could not find fine tune: 123"),
        ("GET", "/v1/fine_tuning/jobs/123/checkpoints", 404, "fine_tune_id", "Could not find fine tune: 123"),
        ("GET", "/v1/fine_tuning/jobs?limit=0", 400, "limit", "greater than or equal to 1"),
        ("GET", "/v1/fine_tuning/jobs?limit=many", 400, "limit", "expected an integer, but got 'many'"),
        ("GET", "/v1/fine_tuning/jobs?after=x", 400, "after", "'x'"),
        ("GET", "/v1/fine_tuning/jobs?metadata=x", 400, "metadata", "'x'"),
        ("GET", "/v1/fine_tuning/jobs?" + "&".join(f"metadata[{n}]=x" for n in range(17)), 400, "metadata", "at most 16"),
        ("GET", "/v1/files?order=up", 400, "order", "Expected 'asc' or 'desc'"),
        ("GET", "/v1/files?after=%00", 400, None, "NUL"),
        ("GET", "/v1/files/%00", 400, None, "NUL"),
        ("GET", "/v1/files/%ff%fe", 404, "id", "No such File object"),
        ("GET", f"/api/jobs/x/metrics?after={2**64}", 400, "after", "less than"),
    ],
)
def test_addresses(http: httpx.Client, method: str, path: str, status: int, param: str | None, words: str) -> None:
    assert words in told(http.request(method, path), status, param)


def test_a_405_lists_every_method_of_the_path(http: httpx.Client) -> None:
    assert http.put("/v1/files").headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"model": ', "could not parse the JSON body"),
        (b'{"model": NaN}', "could not parse the JSON body"),
        (b'{"model": 1e999}', "could not parse the JSON body"),
        (b'{"model": "\\ud800"}', "could not parse the JSON body"),
        (b'{"model": "\xff"}', "could not parse the JSON body"),
        (b'{"model": "a\\u0000b"}', "NUL character"),
        (b'{"a\\u0000b": 1}', "NUL character"),
        (b"[" * 65 + b"]" * 65, "more than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 levels"),
        (b"[" * 20_000 + b"]" * 20_000, "could not parse the JSON body"),
        (b"[]", "Expected a JSON object"),
        (b"null", "Expected a JSON object"),
        (b"", "Expected a JSON object"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs", "/v1/chat/completions"])
def test_bodies_that_are_not_plain_json(http: httpx.Client, path: str, body: bytes, words: str) -> None:
    assert words in told(http.post(path, content=body, headers=JSON), 400)


def test_nesting_up_to_the_limit_is_only_data(http: httpx.Client) -> None:
    assert "Expected a JSON object" in told(http.post("/v1/chat/completions", content=b"[" * 64 + b"1" + b"]" * 64, headers=JSON), 400)


def test_other_encodings(http: httpx.Client) -> None:
    plain = http.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert "expected 'application/json'" in told(plain, 400)
    assert "Content-Encoding 'gzip'" in told(
        http.post("/v1/chat/completions", content=b"{}", headers=JSON | {"content-encoding": "gzip"}), 400
    )
    assert "expected 'multipart/form-data'" in told(http.post("/v1/files", content=b"{}", headers=JSON), 400)
    form = http.post("/v1/fine_tuning/jobs", files={"file": b"x"})
    assert "expected 'application/json'" in told(form, 400)


def test_bodies_without_meaning_are_not_parsed(http: httpx.Client) -> None:
    """Python's client sends this content type with no body on cancel, pause, resume and DELETE."""
    told(http.post("/v1/fine_tuning/jobs/123/cancel", content=b"", headers=JSON), 404, "fine_tune_id")
    told(http.request("DELETE", "/v1/files/file-x", content=b"", headers=JSON), 404, "id")


def test_too_large(http: httpx.Client) -> None:
    big = json.dumps({"model": "x" * MAX_BODY}).encode()
    assert str(MAX_BODY) in told(http.post("/v1/fine_tuning/jobs", content=big, headers=JSON), 413)
    assert str(MAX_BODY) in told(http.post("/v1/fine_tuning/jobs", content=iter([big[:1000], big[1000:]]), headers=JSON), 413)
    row = b'{"messages": []}\n'
    told(upload(http, row * (2 * MAX_FILE // len(row))), 413)  # by its Content-Length, before a byte of it is read
    edge = b"--b\r\nContent-Disposition: form-data; name="
    start = edge + b'"purpose"\r\n\r\nfine-tune\r\n' + edge + b'"file"; filename="t"\r\n\r\n'
    streamed = iter([start, *[row * 1000] * (MAX_FILE // len(row) // 1000 + 1), b"\r\n--b--\r\n"])
    told(http.post("/v1/files", content=streamed, headers={"content-type": "multipart/form-data; boundary=b"}), 413, "file")
    assert upload(http, (row * (MAX_FILE // len(row)))[: MAX_FILE - MAX_FILE % len(row)]).status_code == 200


def test_nothing_of_a_refused_upload_stays(server: Serving, http: httpx.Client, training: str) -> None:
    directory = server.context.settings.data_dir / "files"
    before = sorted(directory.iterdir())
    told(upload(http, b"no json"), 400, "file")
    told(upload(http, b"{}\n" * MAX_FILE), 413)
    with pytest.raises(httpx.HTTPError), server.http(timeout=1) as client:
        client.post("/v1/files", content=_dies(), headers={"content-type": "multipart/form-data; boundary=b"})
    _eventually(lambda: sorted(directory.iterdir()) == before)


def _dies() -> Iterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="t"\r\n\r\n' + b"{}\n" * 500_000
    raise httpx.WriteError("the client's end")


def _eventually(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\r\n \n", "only blank lines"),
        (b'{"a": 1}\n[1]\n', 'Line 2 is not a dictionary (HINT: line starts with: "[1]...")'),
        (b'{"a": 1}\n{"a": \n', "Line 2 is not valid JSON"),
        (b'{"a": 1}{"a": 2}\n', "Line 1 is not valid JSON"),
        (b'{"a": NaN}\n', "Line 1 is not valid JSON"),
        (b'{"a": 1}\n\n{"a": 1}\n', "Line 2 is blank"),
        ('{"a": 1}\n'.encode("utf-16"), "Line 1 is not valid JSON"),
        (b'{"a": "\xff"}\n', "Line 1 is not valid JSON"),
        (b"PK\x03\x04 a spreadsheet", "Line 1 is not valid JSON"),
    ],
)
def test_training_files_that_are_not_json_lines(http: httpx.Client, content: bytes, words: str) -> None:
    message = told(upload(http, content), 400, "file")
    assert words in message
    assert content == b"" or message.startswith("Expected file to have JSONL format, where every line is a JSON dictionary. ")


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + TRAIN, TRAIN.replace(b"\n", b"\r\n"), TRAIN + b"\n\n", TRAIN.rstrip()])
def test_training_files_that_are_good_all_the_same(http: httpx.Client, content: bytes) -> None:
    assert upload(http, content).json()["bytes"] == len(content)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"purpose": "training"}, "purpose", "Expected one of 'assistants'"),
        ({"color": "red"}, "color", "Unrecognized request argument supplied: color"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]", "Expected 'created_at'"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]", "from 3600 to 2592000"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after[seconds]", "'60'"),
        ({"purpose": "x" * 5000}, "purpose", "more than 4096 bytes"),
    ],
)
def test_upload_fields(http: httpx.Client, fields: dict[str, str], param: str, words: str) -> None:
    assert words in told(upload(http, TRAIN, **fields), 400, param)


def test_uploads_without_their_parts(http: httpx.Client) -> None:
    assert "'purpose'" in told(http.post("/v1/files", files={"file": ("a", b"{}")}), 400, "purpose")
    assert "'file'" in told(http.post("/v1/files", files={"purpose": (None, "fine-tune")}), 400, "file")
    two = [("file", ("a", b"{}")), ("file", ("b", b"{}")), ("purpose", (None, "batch"))]
    assert "more than one" in told(http.post("/v1/files", files=two), 400, "file")
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert "cannot be read" in told(http.post("/v1/files", content=b"nonsense", headers=headers), 400)
    cut = b'--b\r\nContent-Disposition: form-data; name="file"; filename="t"\r\n\r\n{}'
    assert "ends before its last boundary" in told(http.post("/v1/files", content=cut, headers=headers), 400)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"model": None}, "model", "expected a string, but got null"),
        ({"model": "gpt-9"}, "model", "Model gpt-9 is not available for fine-tuning or does not exist."),
        ({"training_file": 3}, "training_file", "expected a string, but got an integer"),
        ({"training_file": "file-x"}, "training_file", "No such File object: file-x"),
        ({"validation_file": "file-x"}, "validation_file", "No such File object: file-x"),
        ({"suffix": ""}, "suffix", "at least 1 character"),
        ({"suffix": "x" * 65}, "suffix", "Expected a string of at most 64 characters"),
        ({"suffix": "a:b"}, "suffix", "':' and '/'"),
        ({"suffix": 5}, "suffix", "expected a string, but got an integer"),
        ({"seed": "3"}, "seed", "expected an integer, but got a string"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**31}, "seed", "less than or equal to 2147483647"),
        ({"seed": True}, "seed", "expected an integer, but got a boolean"),
        ({"seed": 1.5}, "seed", "expected an integer, but got a number"),
        ({"method": {"type": "dpo"}}, "method.type", "Method 'dpo' is not supported"),
        ({"method": {"type": "reinforcement"}}, "method.type", "not supported"),
        ({"method": {"type": "ppo"}}, "method.type", "'ppo'"),
        ({"method": {}}, "method.type", "Missing required parameter"),
        (_method({"lora_rnak": 8}), "H.lora_rnak", "Did you mean 'lora_rank'?"),
        (_method({"n_epochs": 0}), "H.n_epochs", "Expected an integer >= 1"),
        (_method({"n_epochs": 1.5}), "H.n_epochs", "Expected an integer"),
        (_method([]), "method.supervised.hyperparameters", "an object"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier", "> 0"),
        ({"hyperparameters": {"batch_size": "many"}}, "hyperparameters.batch_size", "'many'"),
        ({"hyperparameters": {"seed": 1}, "seed": 2}, "seed", "give only one"),
        (_method({"select_by": "f1_macro"}), "H.select_by", "needs a classification run"),
        (_method({"select_by": "accuracy"}), "H.select_by", "needs validation data"),
        (_method({"stop_eval_loss": 0.1}), "H.stop_eval_loss", "needs validation data"),
        (_method({"early_stopping_patience": 2}), "H.early_stopping_patience", "needs validation data"),
        (
            _method({"base_learning_rate": 1, "learning_rate_multiplier": 1}),
            "H.learning_rate_multiplier", "base_learning_rate 1 x learning_rate_multiplier 1 = 1",
        ),
        (
            {"hyperparameters": {"n_epochs": 1}} | _method({"n_epochs": 2}),
            "hyperparameters.n_epochs", "'n_epochs' is 1 in 'hyperparameters', but 2",
        ),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations", "no W&B key"),
        ({"metadata": {"k": 1}}, "metadata.k", "expected a string, but got an integer"),
        ({"metadata": {"k": "x" * 513}}, "metadata.k", "at most 512"),
        ({"metadata": {"k" * 65: "x"}}, f"metadata.{'k' * 65}", "at most 64"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "at most 16"),
        ({"trainingType": 1}, "trainingType", "Unrecognized request argument supplied: trainingType"),
    ],
)  # fmt: skip
def test_fields_of_a_new_job(http: httpx.Client, training: str, change: dict[str, Any], param: str, words: str) -> None:
    asked = {"model": BASE, "training_file": training} | change
    param = param.replace("H.", "method.supervised.hyperparameters.")
    assert words in told(http.post("/v1/fine_tuning/jobs", json=asked), 400, param)


def test_a_new_job_needs_its_fields_and_files_of_the_right_purpose(http: httpx.Client, training: str) -> None:
    response = http.post("/v1/fine_tuning/jobs", json={"model": BASE})
    assert "Missing required parameter: 'training_file'" in told(response, 400, "training_file")
    other = upload(http, TRAIN, purpose="batch").json()["id"]
    for field in ("training_file", "validation_file"):
        asked = {"model": BASE, "training_file": training} | {field: other}
        assert "has purpose 'batch'; expected 'fine-tune'" in told(http.post("/v1/fine_tuning/jobs", json=asked), 400, field)
    unknown = http.post("/v1/fine_tuning/jobs", json={"model": "gpt-9", "training_file": training})
    assert unknown.json()["error"]["code"] == "model_not_available" and BASE in unknown.text


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"verbosity": "low"}, "verbosity"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_fields_of_a_chat_request(http: httpx.Client, change: dict[str, Any], param: str) -> None:
    told(http.post("/v1/chat/completions", json=CHAT | change), 400, param)


@pytest.mark.parametrize(
    "change",
    [
        {"modalities": ["text"]}, {"response_format": {"type": "text"}}, {"tool_choice": "auto"}, {"reasoning_effort": None},
        {"verbosity": "medium"}, {"parallel_tool_calls": True}, {"prediction": {"type": "content", "content": "x"}}, {"store": False},
        {"service_tier": "auto"}, {"user": "u"}, {"metadata": {"a": "b"}}, {"stop": None}, {"stop": "x"}, {"functions": []},
        {"stream": False}, {"seed": -5}, {"logprobs": False}, {"prompt_cache_key": "k"}, {"safety_identifier": "s"},
    ],
)  # fmt: skip
def test_what_changes_nothing_is_accepted(http: httpx.Client, change: dict[str, Any]) -> None:
    response = http.post("/v1/chat/completions", json=CHAT | change)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [1, "a"]}, "prompt"), ({"prompt": {}}, "prompt"),
        ({"best_of": 3}, "best_of"), ({"suffix": "x"}, "suffix"), ({"max_tokens": -1}, "max_tokens"), ({"messages": []}, "messages"),
        ({"echo": "yes"}, "echo"),
    ],
)  # fmt: skip
def test_fields_of_a_completion_request(http: httpx.Client, change: dict[str, Any], param: str) -> None:
    told(http.post("/v1/completions", json={"model": BASE, "prompt": "?"} | change), 400, param)


def test_models_that_are_not_there(http: httpx.Client) -> None:
    message = told(http.post("/v1/chat/completions", json=CHAT | {"model": "gpt-9"}), 404, "model")
    assert message.startswith("The model 'gpt-9' does not exist or you do not have access to it.") and BASE in message


def test_an_unexpected_error_says_nothing_of_the_inside(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serving.serve(serving.settings(tmp_path), Parrot()) as broken, broken.http() as http:
        broken.context.db.write(lambda conn: conn.execute(text("DROP TABLE files")))
        response = http.get("/v1/files")
        message = told(response, 500)
        assert response.headers["x-request-id"] in message
        assert not any(word in response.text for word in ("sqlite", "files.", "Traceback", str(tmp_path)))
        assert response.headers["x-request-id"] in caplog.text and "no such table" in caplog.text
        assert http.get("/v1/models").status_code == 200


@pytest.mark.parametrize("asked", ["bytes=5-1", "bytes=99999999-", "bytes=abc", "items=1", "bytes=0-3"])
def test_a_range_is_ignored(http: httpx.Client, training: str, asked: str) -> None:
    answer = http.get(f"/v1/files/{training}/content", headers={"Range": asked})
    assert answer.status_code == 200 and answer.content == TRAIN
