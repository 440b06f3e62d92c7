"""`logs.read`: each kind of log in the dialects that are met, what is left out or moved, and what is refused in which words."""

from __future__ import annotations

import base64
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunesmith
from tunesmith import logs
from tunesmith.diagnosis.history import History
from tunesmith.domain.runs import MetricPoint, RowLosses, step_metrics_csv
from tunesmith.domain.specs import TrainingSpec
from tunesmith.errors import InvalidRequest
from tunesmith.logs import files
from tunesmith.settings import Settings


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Return a function that writes a file, folders included, and returns its path."""

    def write(content: str | bytes, name: str = "log.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def series(history: History, name: str) -> list[tuple[float, float]]:
    return [(float(step), float(value)) for step, value in zip(history[name].steps, history[name].values, strict=True)]


def refusal(path: Path) -> str:
    with pytest.raises(InvalidRequest) as caught:
        logs.read(path)
    return caught.value.message


# ------------------------------------------------------------------ OpenAI and Azure

OPENAI = """step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy
1,2.51,0.40,,
2,2.31,0.45,2.60,0.38
3,1.90,0.52,,
4,1.71,0.58,2.05,0.49
"""


@pytest.mark.parametrize(
    "wrapped",
    [
        OPENAI.encode(),
        b"\xef\xbb\xbf" + OPENAI.replace("\n", "\r\n").encode(),
        OPENAI.encode("utf-16"),
        base64.b64encode(OPENAI.encode()),
        base64.encodebytes(OPENAI.encode()),
        base64.b64encode(OPENAI.encode()).rstrip(b"="),
        repr(base64.b64encode(OPENAI.encode())).encode(),
        json.dumps(base64.encodebytes(OPENAI.encode()).decode()).encode(),
    ],
    ids=["plain", "bom and crlf", "utf-16", "base64", "base64 lines", "base64 unpadded", "printed bytes", "json string"],
)
def test_openai_result_file(write: Any, wrapped: bytes) -> None:
    history = logs.read(write(wrapped, "step_metrics.csv"))
    assert series(history, "train_loss") == [(1, 2.51), (2, 2.31), (3, 1.9), (4, 1.71)]
    assert series(history, "train_accuracy")[-1] == (4, 0.58)
    assert series(history, "valid_loss") == [(2, 2.6), (4, 2.05)], "a sampled validation stays one"
    assert series(history, "valid_accuracy") == [(2, 0.38), (4, 0.49)]
    assert not len(history["full_valid_loss"]) and history.steps_per_epoch is None and history.finished


@pytest.mark.parametrize("spelling", ["valid_mean_token_accuracy", "validation_mean_token_accuracy"])
@pytest.mark.parametrize("absent", ["", "-1", "-1.0", "N/A"])
def test_azure_results(write: Any, spelling: str, absent: str) -> None:
    text = (
        f"step,train_loss,train_mean_token_accuracy,valid_loss,{spelling},full_valid_loss,full_valid_mean_token_accuracy\n"
        f"1,2.5,0.4,2.6,0.3,{absent},{absent}\n2,2.2,0.5,{absent},{absent},{absent},{absent}\n3,2.1,0.5,2.4,0.4,2.45,0.41\n"
    )
    history = logs.read(write(text, "results.csv"))
    assert series(history, "valid_loss") == [(1, 2.6), (3, 2.4)]
    assert series(history, "valid_accuracy") == [(1, 0.3), (3, 0.4)]
    assert series(history, "full_valid_loss") == [(3, 2.45)] and series(history, "full_valid_accuracy") == [(3, 0.41)]
    assert history.non_finite_step is None


def test_the_first_openai_api_with_classification(write: Any) -> None:
    text = (
        "step,elapsed_tokens,elapsed_examples,training_loss,training_sequence_accuracy,training_token_accuracy,validation_loss,"
        "validation_sequence_accuracy,validation_token_accuracy,classification/accuracy,classification/precision,classification/recall,"
        "classification/auroc,classification/auprc,classification/f1.0\n"
        "1,100,4,0.9,0.0,0.5,1.0,0.0,0.4,,,,,,\n2,200,8,0.7,0.0,0.6,,,,,,,,,\n3,300,12,0.5,0.25,0.7,0.8,0.1,0.6,0.81,0.7,0.6,0.9,0.9,0.65\n"
    )
    history = logs.read(write(text, "compiled_results.csv"))
    assert series(history, "train_accuracy") == [(1, 0.5), (2, 0.6), (3, 0.7)]
    assert series(history, "valid_loss") == [(1, 1.0), (3, 0.8)] and series(history, "valid_accuracy") == [(1, 0.4), (3, 0.6)]
    assert [series(history, name) for name in ("accuracy", "precision", "recall", "f1")] == [[(3, v)] for v in (0.81, 0.7, 0.6, 0.65)]


def test_events_and_checkpoints_of_the_api(write: Any) -> None:
    events = [
        {"object": "fine_tuning.job.event", "type": "metrics", "data": {"step": s, "total_steps": 4, "train_loss": 3.0 - s / 2}}
        for s in (3, 2, 1)
    ]
    events.append({"object": "fine_tuning.job.event", "type": "message", "message": "The job has started", "data": {}})
    history = logs.read(write(json.dumps({"object": "list", "data": events, "has_more": False}), "events.json"))
    assert series(history, "train_loss") == [(1, 2.5), (2, 2.0), (3, 1.5)]
    assert history.total_steps == 4 and not history.finished
    checkpoints = [{"step_number": s, "metrics": {"full_valid_loss": 2.0 / s, "step": s}} for s in (20, 10)]
    assert series(logs.read(write(json.dumps(checkpoints), "c.json")), "full_valid_loss") == [(10, 0.2), (20, 0.1)]


# ------------------------------------------------------------------ Hugging Face


def trainer_state(**more: Any) -> dict[str, Any]:
    """Return the state after 3 of 3 epochs of 20 steps: 640 training rows in batches of 16 x 2, 100 validation rows."""
    history: list[dict[str, Any]] = []
    for step in range(10, 61, 10):
        epoch = step / 20
        history.append({"epoch": epoch, "grad_norm": 1.5, "learning_rate": 5e-5 * (1 - step / 60), "loss": 2.0 - step / 50, "step": step})
        if step % 20 == 0:
            figures = {"eval_loss": 2.2 - step / 60, "eval_accuracy": 0.5 + step / 200, "eval_f1": 0.4 + step / 200}
            speed = {"eval_runtime": 3.21, "eval_samples_per_second": 31.153, "eval_steps_per_second": 3.9}
            history.append({"epoch": epoch, **figures, **speed, "step": step})
    summary = {"train_loss": 1.3, "train_runtime": 40.0, "train_samples_per_second": 48.0, "train_steps_per_second": 1.5}
    history.append({"epoch": 3.0, "step": 60, "total_flos": 1e12, **summary})
    state = {"epoch": 3.0, "global_step": 60, "log_history": history, "max_steps": 60, "num_train_epochs": 3, "train_batch_size": 16}
    return state | more


def test_trainer_state(write: Any) -> None:
    history = logs.read(write(json.dumps(trainer_state()), "trainer_state.json"))
    assert [step for step, _ in series(history, "train_loss")] == [10, 20, 30, 40, 50, 60]
    assert history["train_loss"].values[-1] == pytest.approx(0.8), "the summary's mean over the run is no point"
    assert [step for step, _ in series(history, "full_valid_loss")] == [20, 40, 60] and not len(history["valid_loss"])
    assert len(history["accuracy"]) == len(history["f1"]) == 3
    assert (history.steps_per_epoch, history.total_steps, history.finished) == (20, 60, True)
    assert (history.num_validation, history.num_training) == (100, 640)
    known = {"batch_size": 16, "accumulation_steps": 2, "n_epochs": 3, "base_learning_rate": 1.0}
    assert history.hyperparameters == known | {"learning_rate_multiplier": pytest.approx(5e-5 * 5 / 6)}


def test_trainer_state_that_is_going_on(write: Any) -> None:
    entries = trainer_state()["log_history"][:4]
    history = logs.read(write(json.dumps(trainer_state(log_history=entries, global_step=30)), "trainer_state.json"))
    assert not history.finished and history.total_steps == 60 and history.num_training is None
    summed_up = trainer_state(log_history=[*entries, trainer_state()["log_history"][-1]], global_step=30)
    assert logs.read(write(json.dumps(summed_up), "trainer_state.json")).finished, "stopped early"
    control = {"TrainerControl": {"args": {"should_training_stop": True}}}
    stopped = trainer_state(log_history=entries, global_step=30, stateful_callbacks=control)
    assert logs.read(write(json.dumps(stopped), "trainer_state.json")).finished


def test_folder_of_checkpoints(write: Any, tmp_path: Path) -> None:
    """The newest by number, not by name; with the card's and the adapter's hyperparameters."""
    for step, kept in ((8, 1), (60, 9), (40, 6)):
        content = json.dumps(trainer_state(log_history=trainer_state()["log_history"][:kept], global_step=step))
        write(content, f"out/checkpoint-{step}/trainer_state.json")
    write("{}", "out/checkpoint-final/trainer_state.json")
    write(CARD, "out/README.md")
    write(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 32, "lora_dropout": 0.1}), "out/checkpoint-60/adapter_config.json")
    for path in (tmp_path / "out", tmp_path / "out" / "checkpoint-60", tmp_path / "out" / "checkpoint-60" / "trainer_state.json"):
        history = logs.read(path)
        assert history.last_step == 60 and history.checkpoint_steps == [8, 40, 60]
        assert history.hyperparameters["learning_rate_multiplier"] == 2e-5 and history.hyperparameters["seed"] == 7
        assert history.hyperparameters["warmup_ratio"] == pytest.approx(30 / 60)
    inner = logs.read(tmp_path / "out" / "checkpoint-60").hyperparameters
    assert (inner["tuning"], inner["lora_rank"], inner["lora_alpha"], inner["lora_dropout"]) == ("lora", 8, 32, 0.1)


def test_what_is_not_finite_in_a_trainer_state(write: Any) -> None:
    def state(*entries: dict[str, Any]) -> History:
        return logs.read(write(json.dumps({"log_history": list(entries)}), "trainer_state.json"))

    fine = {"step": 1, "loss": 2.0, "grad_norm": 1.0}
    assert state(fine, {"step": 2, "loss": 1.9, "grad_norm": math.inf}).non_finite_step is None, "mixed precision skips a step"
    assert state(fine, {"step": 2, "loss": 0.0, "grad_norm": math.nan}).non_finite_step == 2, "so a NaN is filtered in the log"
    assert state(fine, {"step": 2, "loss": math.nan}).non_finite_step == 2
    assert state(fine, {"step": 3, "eval_loss": math.inf}).non_finite_step == 3
    assert state(fine, {"step": 2, "loss": 0.0, "grad_norm": 0.0}).non_finite_step is None


def test_several_evaluation_sets(write: Any) -> None:
    def state(*names: str) -> Path:
        entries = [{"step": s, f"eval_{name}_loss": 1.0 / s + i, f"eval_{name}_f1": 0.5} for s in (1, 2) for i, name in enumerate(names)]
        path: Path = write(json.dumps({"log_history": entries}), "trainer_state.json")
        return path

    assert series(logs.read(state("questions")), "full_valid_loss") == [(1, 1.0), (2, 0.5)]
    history = logs.read(state("test", "validation"))
    assert series(history, "full_valid_loss") == [(1, 2.0), (2, 1.5)] and len(history["f1"]) == 2
    assert "2 evaluation sets: 'easy', 'hard'" in refusal(state("hard", "easy"))


CARD = """---
license: apache-2.0
model-index:
- name: a-model
  results: []
---

# a-model

It achieves the following results on the evaluation set:
- Loss: 0.52
- Accuracy: 0.81

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 2e-05
- train_batch_size: 8
- eval_batch_size: 8
- seed: 7
- distributed_type: multi-GPU
- num_devices: 2
- gradient_accumulation_steps: 4
- total_train_batch_size: 64
- optimizer: Adam with betas=(0.9,0.999) and epsilon=1e-08
- lr_scheduler_type: cosine
- lr_scheduler_warmup_steps: 30
- num_epochs: 3.0

### Training results

| Training Loss | Epoch  | Step | Validation Loss | Accuracy | F1 Macro |
|:-------------:|:------:|:----:|:---------------:|:--------:|:--------:|
| No log        | 0.5    | 50   | 0.7012          | 0.6100   | 0.5000   |
| 0.6500        | 1.0    | 100  | 0.6000          | 0.7000   | 0.6400   |
| 0.6500        | 1.5    | 150  | 0.5500          | 0.7900   | 0.7700   |
| 0.4000        | 2.0    | 200  | **0.5200**      | 0.8100   | 0.8000   |

### Framework versions

- Transformers 4.40.1
"""


@pytest.mark.parametrize("name", ["README.md", "card.txt", "."])
def test_model_card(write: Any, name: str) -> None:
    path = write(CARD, "README.md" if name == "." else name)
    history = logs.read(path.parent if name == "." else path)
    assert series(history, "train_loss") == [(100, 0.65), (200, 0.4)], "a repeated loss is the last one logged"
    assert series(history, "full_valid_loss") == [(50, 0.7012), (100, 0.6), (150, 0.55), (200, 0.52)] and not len(history["valid_loss"])
    assert series(history, "accuracy")[0] == (50, 0.61) and series(history, "f1")[-1] == (200, 0.8)
    assert (history.steps_per_epoch, history.total_steps, history.finished) == (100, 300, True)
    assert history.hyperparameters == {
        "base_learning_rate": 1.0, "learning_rate_multiplier": 2e-5, "batch_size": 16, "accumulation_steps": 4, "n_epochs": 3, "seed": 7,
        "learning_rate_schedule": "cosine", "warmup_ratio": pytest.approx(0.1),
    }  # fmt: skip


def test_model_card_that_people_wrote(write: Any) -> None:
    """Epochs without steps, percents, words beside numbers; a table of something else before it."""
    text = (
        "# Results\n\n| Epochs | 3 |\n|---|---|\n| Loss | 0.1 |\n\n"
        "- **Learning Rate**: 5e-5 (AdamW)\n- Learning rate scheduler type: Linear\n\n"
        "| Epoch | Training Loss | Validation Loss | F1-Score (Weighted) | Remark |\n|------:|---|---|---|---|\n"
        "| **1** | 0.0040 | 0.51 | 87.5% | good |\n| 2 | 0.0040 | nan | n/a | bad |\n"
    )
    history = logs.read(write(text, "README.md"))
    assert series(history, "train_loss") == [(1, 0.004), (2, 0.004)], "small ones may well be the same"
    assert series(history, "full_valid_loss") == [(1, 0.51)] and history.non_finite_step == 2
    assert series(history, "f1") == [(1, 0.875)]
    assert history.hyperparameters == {"base_learning_rate": 1.0, "learning_rate_multiplier": 5e-5, "learning_rate_schedule": "linear"}


def test_hyperparameters_out_of_our_ranges(write: Any) -> None:
    text = CARD.replace("total_train_batch_size: 64", "total_train_batch_size: 4096").replace("seed: 7", "seed: 5000000000")
    values = logs.read(write(text.replace("cosine", "polynomial"), "README.md")).hyperparameters
    assert (values["batch_size"], values["accumulation_steps"]) == (256, 16), "the same update"
    assert "seed" not in values and "learning_rate_schedule" not in values


def test_model_cards_without_one_table(write: Any) -> None:
    none = refusal(write("# A model\n\nIt is good.\n", "README.md"))
    assert "model card" in none and "Training Loss" in none and "found none" in none
    table = "| Epoch | Training Loss | Validation Loss |\n|---|---|---|\n| 1 | 0.5 | 0.6 |\n\n"
    assert "found 2 of them, at lines 3, 9" in refusal(write(f"# Two\n\n{table}And:\n\n{table}", "README.md"))
    assert logs.read(write(f"# Two\n\n{table}{CARD}", "README.md")).last_step == 200, "the Trainer's own table counts"


# ------------------------------------------------------------------ plain CSV and JSON


def test_csv_by_epoch(write: Any) -> None:
    """A metric that never changes: nothing is lost or moved but the validation, which is evidently over the whole set."""
    rows = "1,.3803,.5110,.9546\n2,.4129,.5256,.9546\n3,.4804,.5305,.9546\n4,.6571,.5583,.9546\n5,.6605,.5193,.9546\n"
    text = f"epoch,train_loss,valid_loss,f1\n{rows}"
    history = logs.read(write(text))
    assert series(history, "train_loss") == [(1, 0.3803), (2, 0.4129), (3, 0.4804), (4, 0.6571), (5, 0.6605)]
    assert [v for _, v in series(history, "full_valid_loss")] == [0.511, 0.5256, 0.5305, 0.5583, 0.5193] and not len(history["valid_loss"])
    assert [v for _, v in series(history, "f1")] == [0.9546] * 5 and history.steps_per_epoch == 1


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("epoch,valid_loss\n1,0.5\n2,0.4\n", True),
        ("step,epoch,train_loss,valid_loss\n5,0.5,1.0,\n10,1.0,0.9,0.95\n15,1.5,0.8,\n20,2.0,0.7,0.9\n", True),
        ("step,epoch,train_loss,valid_loss\n6,0.92,1.0,1.1\n13,2.0,0.9,0.95\n19,2.92,0.8,0.9\n", True),
        ("step,epoch,valid_loss\n0,0,0.9\n10,1,0.5\n20,2,0.4\n", True),
        ("step,epoch,valid_accuracy\n10,1,0.5\n20,2,0.4\n", True),
        ("step,epoch,train_loss,valid_loss\n5,0.5,1.0,0.99\n10,1.0,0.9,0.95\n15,1.5,0.8,0.9\n", False),
        ("step,valid_loss\n10,0.5\n20,0.4\n", False),
        ("valid_loss\n0.5\n0.4\n", False),
        ("step,epoch,valid_loss\n10,1,0.5\n20,,0.4\n", False),
        ("step,epoch,valid_loss\n10,0,0.5\n20,0,0.4\n30,1,0.4\n", False),
        ("step,epoch,valid_loss\n3,0.3,0.5\n", False),
    ],
)
def test_when_a_validation_is_over_the_whole_set(write: Any, text: str, whole: bool) -> None:
    history = logs.read(write(text))
    sampled = len(history["valid_loss"]) + len(history["valid_accuracy"])
    full = len(history["full_valid_loss"]) + len(history["full_valid_accuracy"])
    assert bool(full) == whole and bool(sampled) != whole


def test_an_empty_column_of_full_validations_is_none(write: Any) -> None:
    assert len(logs.read(write("epoch,valid_loss,full_valid_loss\n1,0.5,\n2,0.4,\n"))["full_valid_loss"]) == 2


def test_a_full_validation_leaves_the_sampled_one_alone(write: Any) -> None:
    history = logs.read(write("epoch,valid_loss,full_valid_loss\n1,0.5,0.6\n2,0.4,0.5\n"))
    assert series(history, "valid_loss") == [(1, 0.5), (2, 0.4)] and series(history, "full_valid_loss") == [(1, 0.6), (2, 0.5)]


@pytest.mark.parametrize(
    "text",
    [
        "Step, Train_Loss ,VALID_LOSS,F1\n1,2.5,,\n2,2.0,2.25,0.5\n",
        "step;train_loss;valid_loss;f1\n1;2,5;;\n2;2,0;2,25;0,5\n",
        "sep=;\nstep;train_loss;valid_loss;f1\n1;2,5;;\n2;2,0;2,25;50%\n",
        "step\ttrain_loss\tvalid_loss\tf1\n1\t2.5\n2\t2.0\t2.25\t0.5\n",
        '# a comment\n\n"step","train_loss","valid_loss","f1"\r\n"1","2.5","",""\r\n\r\n"2","2.0","2.25","0.5"\r\n',
        "# step,train_loss,valid_loss,f1\n1,2.5,,\n# evaluation\n2,2.0,2.25,0.5\n",
        "iteration,loss,val_loss,f1_score,remark\n1,2.5,None,n/a,\n2,2.0,2.25,50%,fine\n",
        "Step,a - train/loss,a - train/loss__MIN,a - train/loss__MAX,a - val/loss,f1\n1,2.5,2.5,2.5,,\n2,2.0,2.0,2.0,2.25,0.5\n",
        "step,train_loss,valid_loss,f1\n2,2.0,2.25,0.5\n1,2.5,,\n",
        "step,train_loss,valid_loss,f1\n1,2.5,,\nstep,train_loss,valid_loss,f1\n2,2.0,2.25,0.5\n",
        "step,train_loss,valid_loss,f1\n1,2.5,,\n2,2.0,2.25,0.5\n3,1.",
        "valid_loss,f1,step,train_loss\n,,1,2.5\n2.25,0.5,2,2.0\n,,3,1.9e-",
        "step,train_loss,valid_loss,f1\n1,2.5,NaN,NaN\n2,2.0,2.25,0.5\n",
        "train_loss,valid_loss,f1\n2.5,,\n2.0,2.25,0.5\n",
        '{"step": 1, "train_loss": 2.5}\n{"step": 2, "train_loss": 2.0, "valid_loss": 2.25, "f1": 0.5}\n',
        '{"step": 1, "train_loss": 2.5, "f1": null}\n\n{"step": 2, "train_loss": "2.0", "valid_loss": 2.25, "f1": 0.5}\n{"step": 3, "tra',
        '[{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0, "valid_loss": 2.25, "f1": 0.5}]',
        '{"step": [1, 2], "loss": [2.5, 2.0], "val_loss": [null, 2.25], "f1": [null, 0.5]}',
        '{"model": "m", "history": {"loss": [2.5, 2.0], "val_loss": [null, 2.25], "f1": [null, 0.5]}}',
    ],
    ids=[
        "case and spaces", "decimal commas", "sep=", "tabs, short rows", "quotes and comments", "names in a comment", "other names", "w&b",
        "unsorted", "names again", "cut off", "cut off in a number", "nan for blank", "no step", "json lines", "json lines cut off",
        "json list", "json columns", "json columns inside",
    ],
)  # fmt: skip
def test_dialects(write: Any, text: str) -> None:
    history = logs.read(write(text))
    assert series(history, "train_loss") == [(1, 2.5), (2, 2.0)]
    assert series(history, "valid_loss") == [(2, 2.25)] and series(history, "f1") == [(2, 0.5)]
    assert history.non_finite_step is None


def test_our_own_files_alone(write: Any) -> None:
    points = [MetricPoint(s, 8, s / 4, train_loss=2.0 / s if s else None, full_valid_loss=None if s % 4 else 2.0) for s in range(7)]
    history = logs.read(write("".join(json.dumps(point.to_dict()) + "\n" for point in points), "metrics.jsonl"))
    assert len(history["train_loss"]) == 6 and [s for s, _ in series(history, "full_valid_loss")] == [0, 4]
    assert (history.steps_per_epoch, history.total_steps, history.finished) == (4, 8, False)
    history = logs.read(write(step_metrics_csv(points), "step_metrics.csv"))
    assert len(history["train_loss"]) == 6 and series(history, "full_valid_loss") == [(4, 2.0)] and history.steps_per_epoch == 4


def test_keras(write: Any) -> None:
    """Counted from 0, and a bare accuracy is the training's."""
    history = logs.read(write("epoch,accuracy,loss,val_accuracy,val_loss\n0,0.5,1.0,0.4,1.1\n1,0.6,0.9,0.5,1.0\n"))
    assert series(history, "train_loss") == [(1, 1.0), (2, 0.9)] and series(history, "train_accuracy") == [(1, 0.5), (2, 0.6)]
    assert series(history, "full_valid_accuracy") == [(1, 0.4), (2, 0.5)] and series(history, "epoch") == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("text", "steps", "per_epoch"),
    [
        ("epoch,train_loss\n0.5,3\n1.0,2\n1.5,1\n", [1, 2, 3], 2),
        ("epoch,train_loss,valid_loss\n0,,3\n1,2,2\n", [1], 1),
        ("epoch,train_loss\n0,3\n0,2\n1,1\n1,1\n", [1, 2, 3, 4], 2),
        ("epoch,step,train_loss\n0,0,3\n0,50,2\n1,100,1\n1,150,1\n2,200,1\n", [0, 50, 100, 150, 200], 100),
        ("epoch,step,train_loss\n0,88,3\n1,176,2\n2,264,2\n", [88, 176, 264], 88),
        ("epoch,step,train_loss\n1,88,3\n", [88], 88),
        ("epoch,step,train_loss\n0,88,3\n", [88], None),
        ("epoch,step,train_loss\n0.25,1,3\n0.5,2,3\n0.75,3,3\n", [1, 2, 3], 4),
    ],
)
def test_steps_and_epochs(write: Any, text: str, steps: list[float], per_epoch: float | None) -> None:
    history = logs.read(write(text))
    assert [step for step, _ in series(history, "train_loss")] == steps and history.steps_per_epoch == per_epoch
    assert all(epoch == pytest.approx(step / (per_epoch or 1)) for step, epoch in series(history, "epoch")), "passes that are done"


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("step,train_loss\n1,2\n2,nan\n3,nan\n", 2),
        ("step,train_loss\n1,2\n2,nan\n3,2\n4,2\n5,2\n", 2),
        ("step,train_loss,lr\n1,2,1\n2,nan,1\n3,nan,1\n4,,1\n5,2,1\n", 2),
        ("step,train_loss,valid_loss\n1,2,\n2,inf,\n", 2),
        ("step,train_loss,valid_loss\n1,2,\n2,1,NaN\n3,1,2\n", None),
        ("step,train_loss,valid_loss\n1,2,nan\n1,nan,2\n2,1,nan\n2,nan,1\n", None),
        ("step,lr,train_loss\n1,0.1,2\n2,0.1,nan\n3,0.1,nan\n4,0.1,2\n5,0.1,nan\n", None),
        ("step,train_loss,grad_norm\n1,2,inf\n2,2,nan\n", None),
        ("step,train_loss,f1\n1,2,nan\n2,2,nan\n", None),
        ('{"step": 1, "train_loss": 2.0}\n{"step": 2, "train_loss": Infinity}\n', 2),
        ('{"step": 1, "train_loss": NaN}\n', 1),
    ],
)
def test_nan_is_a_figure_or_a_blank(write: Any, text: str, broken: int | None) -> None:
    assert logs.read(write(text)).non_finite_step == broken


def test_percent_and_minus_one(write: Any) -> None:
    history = logs.read(write("step,train_loss,train_accuracy,f1\n1,-0.5,55,1.0\n2,-1,87.5,-1\n"))
    assert series(history, "train_accuracy") == [(1, 0.55), (2, 0.875)]
    assert series(history, "train_loss") == [(1, -0.5), (2, -1.0)], "where a loss is below 0, -1 is one"
    assert series(history, "f1") == [(1, 1.0)]
    assert series(logs.read(write("step,f1\n1,0.5%\n2,1%\n")), "f1") == [(1, 0.005), (2, 0.01)]


def test_two_runs_in_one_log(write: Any) -> None:
    one = "1,2.0\n2,1.9\n3,1.8\n4,1.7\n"
    two = "1,3.0\n2,2.9\n3,2.8\n"
    assert "row 5 starts over at step 1" in refusal(write(f"step,train_loss\n{one}{two}"))
    assert "starts over at epoch 1" in refusal(write(f"epoch,train_loss\n{one}{two}"))
    assert len(logs.read(write(f"step,train_loss\n{one}{one}"))["train_loss"]) == 4, "the same figures twice are one run"
    resumed = "2,1.6\n3,1.5\n4,1.4\n5,1.3\n6,1.2\n"
    assert len(logs.read(write(f"step,train_loss\n{one}{resumed}"))["train_loss"]) == 6, "a resumed run goes back a little"
    apart = "step,train_loss,valid_loss\n1,2.0,\n2,1.9,\n3,1.8,\n1,,2.1\n2,,2.0\n3,,1.9\n"
    assert len(logs.read(write(apart))["valid_loss"]) == 3, "one series after the other is one run"


# ------------------------------------------------------------------ run folders


@pytest.fixture
def run_folder(write: Any, tmp_path: Path) -> Path:
    """Return a run over 22 training rows, 3 validation rows, batches of 4 x 2, at step 5 of 6."""
    spec = TrainingSpec.ask("m", {"batch_size": 4, "accumulation_steps": 2, "n_epochs": 2, "base_learning_rate": "auto"}, "train")
    values = dict(spec.values) | {"base_learning_rate": 3.7e-4, "learning_rate_multiplier": 0.5, "tuning": "lora", "max_length": 512}
    reasons = {"base_learning_rate": "auto: LoRA", "batch_size": "asked"}
    write(json.dumps(spec.to_dict() | {"base": "m", "data": {}, "resolved": values | {"reasons": reasons, "plan": None}}), "run/spec.json")
    epochs = [0, 8 / 22, 16 / 22, 1, 1 + 8 / 22, 1 + 16 / 22]
    full = {0: 3.0, 3: 2.0}
    points = [MetricPoint(s, 6, epochs[s], train_loss=2.5 - s / 10 if s else None, full_valid_loss=full.get(s)) for s in range(6)]
    write("".join(json.dumps(point.to_dict()) + "\n" for point in points) + '{"step": 6, "tot', "run/metrics.jsonl")
    losses = [RowLosses(s, [4, 9, 11], [5, 5, 7], [value, value + 1, value]) for s, value in full.items()]
    write("".join(json.dumps(rows.to_dict()) + "\n" for rows in losses), "run/row_losses.jsonl")
    for step in (3, 5):
        (tmp_path / "run" / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / ".step-000006.tmp").mkdir()
    return tmp_path / "run"


def test_run_folder(run_folder: Path, write: Any) -> None:
    history = logs.read(run_folder)
    assert len(history["train_loss"]) == 5 and series(history, "full_valid_loss") == [(0, 3.0), (3, 2.0)]
    assert (history.num_training, history.num_validation, history.steps_per_epoch, history.total_steps) == (22, 3, 3, 6)
    assert history.checkpoint_steps == [3, 5] and not history.finished
    assert history.usual_learning_rate == 3.7e-4 and history.hyperparameters["learning_rate_multiplier"] == 0.5
    assert history.rows is not None and list(history.rows.lines) == [4, 9, 11] and history.rows.loss_ER.shape == (2, 3)
    spec = json.loads((run_folder / "spec.json").read_text())
    spec["resolved"]["reasons"]["base_learning_rate"] = "asked"
    write(json.dumps(spec), "run/spec.json")
    assert logs.read(run_folder).usual_learning_rate is None, "the one that was asked for need not suit the model"
    write("{}", "run/result.json")
    assert logs.read(run_folder / "spec.json").finished
    assert logs.read(run_folder / "metrics.jsonl").hyperparameters == {}, "the file alone tells less"


def test_damaged_run_folders(run_folder: Path) -> None:
    losses = run_folder / "row_losses.jsonl"
    losses.write_text('{"step": 0, "loss": [1, 2], "lines": [4, 5], "num_targets": [5]}\n{"step": 3}\n')
    assert logs.read(run_folder).rows is None
    losses.write_text('{"step": 0, "loss": [1], "lines": [4], "num_targets": [5]}\n{"step": 3, "loss": [1, 2]}\n')
    rows = logs.read(run_folder).rows
    assert rows is not None and rows.steps == [0]
    (run_folder / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    assert "line 2, is no JSON object: 'nonsense'" in refusal(run_folder)
    (run_folder / "metrics.jsonl").write_text("")
    assert "has no figures yet" in refusal(run_folder)
    (run_folder / "spec.json").write_text('{"model": "m", "asked": {}, "source": "tra')
    assert "is no whole JSON" in refusal(run_folder)


def test_a_real_run(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", allowed_models=(str(tiny),))
    asked: dict[str, Any] = {"n_epochs": 2, "batch_size": 4, "accumulation_steps": 3, "base_learning_rate": "auto"}
    run = tunesmith.train(
        letters[0], model="tiny", valid=letters[1], output=tmp_path / "out", settings=settings, learning_rate_multiplier=1, **asked
    )
    history = logs.read(run.directory)
    assert (history.num_training, history.num_validation, history.steps_per_epoch, history.total_steps) == (40, 12, 4, 8)
    assert history.finished and history.checkpoint_steps == [4, 8]
    assert history.usual_learning_rate == history.hyperparameters["base_learning_rate"] < 0.01
    assert len(history.hyperparameters) > 15
    assert history.hyperparameters == {name: run.spec["resolved"][name] for name in history.hyperparameters}
    assert [step for step, _ in series(history, "full_valid_loss")] == [0, 4, 8]
    assert history.rows is not None and history.rows.loss_ER.shape == (3, 12)
    weighted = np.average(history.rows.loss_ER, axis=1, weights=history.rows.num_targets_R)
    assert np.allclose(weighted, history["full_valid_loss"].values, rtol=1e-3)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["is empty"]),
        (" \n\n", ["is empty"]),
        (b"\x80\x04\x95\x00\x01", ["is no text", "pickles"]),
        (b"\xff\xfe\x00", ["is no text"]),
        ("Dear diary, it went well.\n", ["no training log", "'Dear diary, it went well.'", "trainer_state.json", "model card"]),
        ("time,speed\n1,2\n", ["'time,speed 1,2'", "Looked for", "train_loss"]),
        ("step,learning_rate\n1,2\n", ["no column with a loss or a metric", "'step', 'learning_rate'", "full_valid_loss"]),
        ("step,train_loss\n", ["no figures"]),
        ("step,train_loss\n1,\n2,n/a\n", ["no figures"]),
        ("step,train_loss\n1,2\n2,two\n", ["line 3", "'train_loss'", "'two'", "no number"]),
        ("step,train_loss,train_loss\n1,2,3\n", ["2 columns for train_loss"]),
        ("step,a - train/loss,b - train/loss\n1,2,3\n", ["2 columns for train_loss", "'a - train/loss'", "one run"]),
        ('step,train_loss\n1,"' + "2" * 200_000 + "\n", ["no CSV that can be read"]),
        ('{"log_history": []}', ["empty log_history", "eval_loss"]),
        ('{"log_history": [1, "a"]}', ["empty log_history"]),
        ('{"log_history": [{"step": 1, "reward": 2.0}]}', ["no column with a loss", "'reward'"]),
        ('{"log_history": [{"step": 1, "lo', ["no whole JSON", "line 1"]),
        ('{"loss": [1, 2], "val_loss": [1]}', ["different lengths", "loss 2", "val_loss 1"]),
        ('{"a": 1}', ["no column with a loss", "'a'"]),
        ("[1, 2, 3]", ["no column with a loss", "only none"]),
        ("[" * 100_000, ["JSON"]),
        ('{"step": ' + "9" * 5_000 + ', "loss": 1}', ["JSON"]),
        ('{"step": 1, "loss": 1}\n[2]\n', ["line 2"]),
    ],
)  # fmt: skip
def test_refusals_say_what_was_found(write: Any, content: str | bytes, words: list[str]) -> None:
    message = refusal(write(content, "some.log"))
    assert all(word in message for word in words), message
    assert "some.log" in message and len(message) < 1500


def test_refused_paths(tmp_path: Path) -> None:
    assert "There is no file" in refusal(tmp_path / "nowhere.csv")
    assert "the folder is empty" in refusal(tmp_path)
    for name in "abcdefghijkl":
        (tmp_path / f"{name}.bin").touch()
    assert "'a.bin'" in refusal(tmp_path) and "4 more" in refusal(tmp_path)
    assert "xxx" in refusal(tmp_path / ("x" * 5_000)), "a name longer than any"
    assert "There is no file" in refusal(Path("with\0zero"))
    os.mkfifo(tmp_path / "pipe")
    assert "There is no file" in refusal(tmp_path / "pipe"), "a pipe would be waited for"


def test_sizes_are_bounded(tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "big.csv").open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)
    assert "over 256 MB" in refusal(tmp_path / "big.csv")
    assert "over 4 MB" in refusal(write("# A card\n" + "words\n" * 700_000))
    assert "no training log" in refusal(write("train_loss," * 100_000 + "\n"))
    assert "no training log" in refusal(write("#\n" * 2_000 + "train_loss\n1\n"))
    monkeypatch.setattr(files, "MAX_ROWS", 10)
    row = json.dumps({"step": 1, "loss": 1}) + "\n"
    assert len(logs.read(write("train_loss\n" + "1\n" * 10))["train_loss"]) == 10
    assert "over 10 rows" in refusal(write("train_loss\n" + "1\n" * 11))
    assert len(logs.read(write(row * 10))["train_loss"]) == 1
    assert "over 10 lines" in refusal(write(row * 11))
    monkeypatch.setattr(files, "MAX_JSON", 20)
    assert "JSON lines may be longer" in refusal(write('[{"step": 1, "loss": 2}]'))


# ------------------------------------------------------------------ never a crash

STATE = json.dumps(trainer_state(), indent=1)
WHOLE = {"log.csv": OPENAI, "step_metrics.csv": base64.b64encode(OPENAI.encode()).decode(), "trainer_state.json": STATE, "README.md": CARD}


def only_refuses(path: Path) -> None:
    """Read a log; a history must be sound, and nothing but a refusal may be raised."""
    try:
        history = logs.read(path)
    except InvalidRequest as refused:
        assert len(refused.message) < 3000
        return
    for found in history.series.values():
        assert np.isfinite(found.steps).all() and np.isfinite(found.values).all()
        assert (np.diff(found.steps) > 0).all() and len(found.steps) == len(found.values) > 0
    assert history.series or history.non_finite_step is not None
    assert history.steps_per_epoch is None or 0 < history.steps_per_epoch < math.inf
    assert history.last_step >= 0 and history.until(3).last_step <= 3


@pytest.mark.parametrize("name", WHOLE)
def test_a_log_cut_off_anywhere(name: str, tmp_path: Path) -> None:
    text = WHOLE[name]
    for end in range(0, len(text), max(1, len(text) // 150)):
        (tmp_path / name).write_text(text[:end])
        only_refuses(tmp_path / name)


NUMBERS = st.one_of(
    st.floats(), st.integers(-2, 6), st.sampled_from([10**400, -1, 0, 1e308, -1e308, 1e-320, 2**53 + 1, 1e12]), st.none(), st.booleans()
)
KEYS = st.sampled_from([
    "step", "epoch", "total_steps", "loss", "train_loss", "valid_loss", "full_valid_loss", "eval_loss", "eval_a_loss", "accuracy",
    "eval_f1", "learning_rate", "grad_norm", "train_runtime", "train_samples_per_second", "eval_runtime", "eval_samples_per_second",
    "data", "metrics", "",
])  # fmt: skip
WORDS = st.sampled_from(["", "nan", "-inf", "No log", "1,5", "12%", "%", '"', "\u0663", "1_0", "x"])
CELLS = st.one_of(NUMBERS.map(str), WORDS, st.text(max_size=5))
VALUES = st.one_of(NUMBERS, st.text(max_size=4), st.lists(NUMBERS, max_size=3), st.dictionaries(KEYS, NUMBERS, max_size=3))
ENTRIES = st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=8)


@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(content)
    only_refuses(path)


@given(
    names=st.lists(st.one_of(KEYS, st.text(max_size=6)), min_size=1, max_size=6),
    rows=st.lists(st.lists(CELLS, max_size=7), max_size=8),
    delimiter=st.sampled_from([",", ";", "\t", "|", " | "]),
    around=st.sampled_from([("", "\n"), ("# ", "\r\n"), ("---\n", "\n|---|---|\n"), ("| ", " |\n|:-:|---\n"), ("\ufeff", "\n")]),
)
def test_any_table(tmp_path_factory: pytest.TempPathFactory, names: list[str], rows: list[list[str]], delimiter: str, around: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.table"
    text = around[0] + delimiter.join(names) + around[1] + "".join(delimiter.join(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", errors="replace")
    only_refuses(path)


@given(entries=ENTRIES, state=st.dictionaries(st.sampled_from(list(trainer_state())), VALUES, max_size=6), shape=st.integers(0, 3))
def test_any_json(tmp_path_factory: pytest.TempPathFactory, entries: list[Any], state: dict[str, Any], shape: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    shapes = [state | {"log_history": entries}, entries, state, None]
    text = json.dumps(shapes[shape]) if shapes[shape] is not None else "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_text(text)
    only_refuses(path)


@given(points=ENTRIES, rows=ENTRIES, resolved=st.dictionaries(st.sampled_from(["batch_size", "accumulation_steps", "reasons"]), VALUES))
def test_any_run_folder(tmp_path_factory: pytest.TempPathFactory, points: list[Any], rows: list[Any], resolved: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-run"
    folder.mkdir(exist_ok=True)
    (folder / "spec.json").write_text(json.dumps({"model": "m", "asked": {}, "source": "train", "resolved": resolved}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    (folder / "row_losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    only_refuses(folder)


def test_reading_is_light() -> None:
    heavy = ("torch", "transformers", "sqlalchemy", "pandas", "matplotlib", "pydantic")
    code = f"import sys, tunesmith.logs\nprint(*(name for name in {heavy!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_format_is_said_when_nothing_fits(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert all(form.what in message for form in logs.FORMATS)
