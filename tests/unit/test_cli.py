"""The command line as a user meets it: real processes, exit statuses, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunesmith import cli
from tunesmith.domain.specs import BY_NAME, HYPERPARAMETERS

from ..conftest import write_chat

COMMANDS = {"diagnose", "serve", "worker", "train", "chat", "models", "demo", "doctor"}


@pytest.fixture
def environment(tiny: Path, tmp_path: Path) -> dict[str, str]:
    """Return an environment with a home of its own, in which `tiny` may be used."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_WAIT_POLICY") if name in os.environ}
    return kept | {
        "TUNESMITH_DATA_DIR": str(tmp_path / "data"),
        "TUNESMITH_CACHE_DIR": str(tmp_path / "cache"),
        "TUNESMITH_ALLOWED_MODELS": str(tiny),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }


def tunesmith(environment: Mapping[str, str], *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunesmith.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, input=stdin, timeout=120)


@pytest.fixture
def main(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Return a function that runs the command line in this process: its exit status, stdout and stderr."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object, **more: str) -> tuple[int, str, str]:
        for name, value in (environment | more).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()  # type: ignore[return-value]

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def options(name: str) -> dict[str, Any]:
    command: Any = cli.typer.main.get_command(cli.app)
    return {option: parameter for parameter in command.commands[name].params for option in parameter.opts}


def test_the_commands() -> None:
    command: Any = cli.typer.main.get_command(cli.app)
    assert set(command.commands) == COMMANDS
    assert all(one.help for one in command.commands.values())


def test_every_hyperparameter_is_an_option_with_its_default_and_bounds() -> None:
    known = options("train")
    shown = CliRunner().invoke(cli.app, ["train", "--help"], env={"COLUMNS": "10000"}).output
    for h in HYPERPARAMETERS:
        option = f"--{h.name.replace('_', '-')}"
        assert option in known and option in shown
        default = "none" if h.train_default is None else h.train_default
        assert h.help in known[option].help and f"Default: {default}." in known[option].help
    assert {"data", "--valid", "--model", "--output", "--json"} <= known.keys()
    assert len(known) == len(BY_NAME) + 5


def test_training_from_the_command_line(environment: dict[str, str], letters: tuple[Path, Path], tmp_path: Path) -> None:
    """Every hyperparameter is passed on as it was written; then the same command, the models and a word with the run."""
    asked = {
        "lora_alpha": 8, "lora_dropout": 0.1, "lora_rank": 4, "tuning": "lora", "batch_size": 2, "accumulation_steps": 2, "n_steps": 3,
        "n_epochs": "none", "learning_rate_multiplier": 1.5, "base_learning_rate": 1e-3, "training_split": 0.5, "stop_eval_loss": "none",
        "early_stopping_patience": 3, "select_by": "full_valid_loss", "eval_interval": "none", "eval_samples": 3, "checkpoint_seconds": 60,
        "seed": "7", "learning_rate_schedule": "cosine", "warmup_ratio": 0, "max_length": "auto",
        "score_training_rows": True,
    }  # fmt: skip
    assert asked.keys() == BY_NAME.keys()
    flags = [part for name, value in asked.items() for part in (f"--{name.replace('_', '-')}", value) if part is not True]
    command = ["train", letters[0], "--valid", letters[1], "--model", "tiny", "--output", tmp_path / "run", *flags]
    done = tunesmith(environment, *command, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["directory"] == str(tmp_path / "run") and said["result"]["step"] == 3 and said["result"]["reason"] == "n_steps 3 reached."
    assert said["tuned"]["full_valid_loss"] - said["base"]["full_valid_loss"] == said["difference"]["full_valid_loss"]
    stored = json.loads((tmp_path / "run" / "spec.json").read_text())["asked"]
    assert stored == {name: None if value == "none" else int(value) if name == "seed" else value for name, value in asked.items()}

    scored = json.loads((tmp_path / "run" / "training_row_losses.json").read_text())
    assert scored["of"] == "training" and len(scored["loss"]) == len(scored["lines"]) == len(letters[0].read_text().splitlines())
    diagnosed = tunesmith(environment, "diagnose", tmp_path / "run", "--json", "--plot", tmp_path / "plot.png")
    found = json.loads(diagnosed.stdout)
    assert diagnosed.returncode == 0 and found["checkpoint"]["step"] == 3 and (tmp_path / "plot.png").stat().st_size > 10_000
    losses = [row["loss"] for row in found["rows"]["worst_training"]]
    assert losses == sorted(losses, reverse=True) and losses[0] == pytest.approx(max(scored["loss"]), abs=1e-4)
    report = tunesmith(environment, "diagnose", tmp_path / "run", "--md")
    assert report.stdout.startswith("# Report: ") and f"**{found['verdict']}**" in report.stdout
    assert f"**{found['verdict']}**" in (tmp_path / "run" / "report.md").read_text()
    both = tunesmith(environment, "diagnose", tmp_path / "run", "--md", "--json")
    assert both.returncode == 2 and "one of --json and --md" in both.stderr

    again = tunesmith(environment, *command)
    assert again.returncode == 0
    assert again.stdout.startswith(f"Run folder: {tmp_path / 'run'}\nEnded at step 3: n_steps 3 reached.\n")
    assert f"  {tmp_path / 'run' / 'loss.png'}\n" in again.stdout and "full_valid_loss: base " in again.stdout

    other = tunesmith(environment, *command, "--seed", 8)
    assert (other.returncode, other.stdout) == (1, "") and "seed 7 there, 8 asked" in other.stderr

    answer = tunesmith(environment, "chat", tmp_path / "run", "a1", "--max-tokens", 4)
    assert answer.returncode == 0 and answer.stdout.endswith("\n")
    talk = tunesmith(environment, "chat", tmp_path / "run", "--max-tokens", 4, stdin="a1\na1\n")
    assert talk.stdout.startswith(answer.stdout) and len(talk.stdout) > len(answer.stdout)


def test_ctrl_c_saves_and_the_same_command_goes_on(environment: dict[str, str], letters: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [
        "train",
        letters[0],
        "--model",
        "tiny",
        "--output",
        output,
        "--n-steps",
        "2000",
        "--n-epochs",
        "none",
        "--stop-eval-loss",
        "none",
    ]
    command += ["--eval-interval", "none", "--json"]
    running = subprocess.Popen([sys.executable, "-m", "tunesmith.cli", *map(str, command)], env=environment, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (output / "metrics.jsonl").is_file() or (output / "metrics.jsonl").read_text().count("\n") < 3:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and json.loads(out)["result"] is None
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(len(steps))) and list((output / "checkpoints").glob(f"step-{steps[-1]:06d}"))


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--n-steps", "0"], "Invalid value for 'n_steps': 0. Expected an integer >= 1"),
        (["--n-steps", "ten"], "Invalid value for 'n_steps': 'ten'. Expected an integer"),
        (["--n-steps", "9" * 400], "Invalid value for 'n_steps'"),
        (["--lora-rank", "none"], "Invalid value for 'lora_rank': None. Expected an integer"),
        (["--lora-alpha", "nan"], "Invalid value for 'lora_alpha': nan"),
        (["--select-by", "best"], "'last' or 'full_valid_loss' or 'accuracy'"),
        (["--n-steps", "none", "--n-epochs", "none"], "nothing would end the run"),
        (["--learning-rate-multiplier", "2"], "base_learning_rate 1 x learning_rate_multiplier 2 = 2"),
        (["--valid", "nowhere.jsonl"], "The validation file 'nowhere.jsonl' does not exist."),
        (["--model", "gpt-9"], "The model 'gpt-9' does not exist"),
    ],
)
def test_bad_values_are_one_message_and_status_1(
    main: Callable[..., tuple[int, str, str]], letters: tuple[Path, Path], tmp_path: Path, arguments: list[str], words: str
) -> None:
    status, out, err = main("train", letters[0], "--model", "tiny", "--output", tmp_path / "run", "--json", *arguments)
    assert (status, out) == (1, "")
    assert words in next(line for line in err.splitlines() if line.startswith("error: "))


def test_a_bad_file_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    few = write_chat(tmp_path / "few.jsonl", [("q", "a")] * 3)
    done = tunesmith(environment, "train", few, "--model", "tiny")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: Training file has 3 example(s), but must have at least 10 examples" in done.stderr


def test_an_unknown_option_is_a_usage_error(main: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = main("train", "x.jsonl", "--lora-rang", "3")
    assert (status, out) == (2, "") and "--lora-rang" in err


def test_models(main: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, out, _ = main("models", "--json")
    assert status == 0
    assert json.loads(out) == [
        {"name": "smollm2-135m-instruct", "kind": "base", "state": "fetched when first used"},
        {"name": "tiny", "kind": "base", "state": "ready"},
    ]
    assert "tiny\tbase\tready\n" in main("models", "--data-dir", tmp_path / "other")[1]
    assert not (tmp_path / "data").exists() and not (tmp_path / "other").exists()  # looking makes nothing


def test_doctor(environment: dict[str, str]) -> None:
    done = tunesmith(environment, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks.keys() == {"python", "torch", "memory", "disk", "database", "base models"}
    assert all({"name", "ok", "found"} == set(check) and check["found"] for check in checks.values())
    assert done.returncode == (0 if all(check["ok"] for check in checks.values()) else 1)
    assert "trains on" in checks["torch"]["found"] and "tiny ready" in checks["base models"]["found"]


def test_doctor_says_what_is_missing(main: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = main("doctor", TUNESMITH_ALLOWED_MODELS="/nowhere/at-all")
    assert status == 1
    assert any(line.startswith("missing  base models") and "at-all is not there" in line for line in out.splitlines())


def test_a_busy_port_is_a_clear_error(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = tunesmith(environment, "serve", "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    words = f"error: Cannot listen on 127.0.0.1 port {port}: Address already in use. Hint: --port 0 takes a free one."
    assert done.stderr.strip() == words


@pytest.mark.parametrize(
    "more,words",
    [
        ({"TUNESMITH_PORT": "99999"}, "Setting 'port' (environment TUNESMITH_PORT) has value '99999': Input should be less than or equal"),
        ({"TUNESMITH_MODEL_IDLE_SECONDS": "soon"}, "TUNESMITH_MODEL_IDLE_SECONDS"),
        ({"TUNESMITH_DATABASE_URL": "nonsense"}, "The database URL cannot be read. Expected postgresql"),
    ],
)
def test_a_bad_setting_is_named(main: Callable[..., tuple[int, str, str]], more: dict[str, str], words: str) -> None:
    status, out, err = main("serve", **({"TUNESMITH_PORT": "0"} | more))
    assert (status, out) == (1, "") and err.startswith("error: ") and words in err


def test_chat_with_what_is_not_there(main: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for name in ("gpt-9", tmp_path / "nowhere"):
        status, out, err = main("chat", name, "hi")
        assert (status, out) == (1, "") and f"error: The model '{name}' does not exist" in err
