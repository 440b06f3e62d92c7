"""Models trained from models: an adapter on a fully tuned model is served on those weights, and damaged weights on none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import peft
import pytest
import torch
import transformers

from .deployment import Deployment, eventually, serving

MESSAGES: Any = [{"role": "user", "content": "a1"}]


@pytest.fixture(scope="module")
def deployment(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with serving(tmp_path_factory.mktemp("continued") / "data", [tiny]) as running:
        yield running


def train(deployment: Deployment, files: tuple[Path, Path], model: str, **hyperparameters: Any) -> Any:
    job = deployment.start_job(*files, model, n_epochs=2, batch_size=8, base_learning_rate=5e-3, **hyperparameters)
    job = deployment.await_status(job.id, ("succeeded", "failed"))
    assert job.status == "succeeded", job.error
    return job


def directory(deployment: Deployment, job: Any) -> Path:
    return max((deployment.data_dir / "jobs" / job.id / "checkpoints").iterdir())


def test_an_adapter_on_a_fully_tuned_model(deployment: Deployment, letters: tuple[Path, Path], tiny: Path) -> None:
    client = deployment.client
    whole = train(deployment, letters, "tiny", tuning="full")
    adapter = train(deployment, letters, whole.fine_tuned_model)
    again = train(deployment, letters, adapter.fine_tuned_model)
    assert [job.fine_tuned_model.split(":")[1] for job in (whole, adapter, again)] == ["tiny"] * 3
    assert "auto: a causal language model is tuned by LoRA" in str(client.get(f"/../api/jobs/{adapter.id}", cast_to=object))

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    for job, base in ((adapter, directory(deployment, whole)), (again, directory(deployment, whole))):
        network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        expected = peft.PeftModel.from_pretrained(network, directory(deployment, job)).eval()(input_ids=ids).logits[0, -1].log_softmax(-1)
        no_end = {str(tokenizer.eos_token_id): -100}  # an answer that ends at once has no logprobs to compare
        answer = client.chat.completions.create(
            model=job.fine_tuned_model, messages=MESSAGES, temperature=0, max_tokens=1, logit_bias=no_end, logprobs=True, top_logprobs=2
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.content is not None
        found = [top.logprob for top in logprobs.content[0].top_logprobs]
        assert found == pytest.approx(expected.topk(2).values.tolist(), abs=0.02)  # bfloat16 here, float32 there

    with pytest.raises(openai.BadRequestError, match="is needed by it"):
        client.models.delete(whole.fine_tuned_model)


def test_damaged_weights_are_never_loaded(deployment: Deployment, letters: tuple[Path, Path]) -> None:
    job = train(deployment, letters, "tiny")
    weights = directory(deployment, job) / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(openai.InternalServerError, match=r"adapter_model.safetensors is not what was written"):
        deployment.client.chat.completions.create(model=job.fine_tuned_model, messages=MESSAGES)
    more = deployment.start_job(*letters, job.fine_tuned_model, n_epochs=1)
    more = deployment.await_status(more.id, ("succeeded", "failed"))
    assert more.status == "failed" and "not what was written" in more.error.message


def test_a_cancelled_pause_leaves_no_checkpoints(tiny: Path, letters: tuple[Path, Path], tmp_path: Path) -> None:
    with serving(tmp_path / "data", [tiny]) as deployment:
        job = deployment.start_job(*letters, "tiny", n_epochs=100, checkpoint_seconds=0)
        deployment.await_step(job.id, 3)
        deployment.client.fine_tuning.jobs.pause(job.id)
        deployment.await_status(job.id, ("paused",), 20)
        deployment.client.fine_tuning.jobs.cancel(job.id)
    with serving(tmp_path / "data", [tiny]) as deployment:  # a worker sweeps at its start and once a minute
        published = deployment.data_dir / "jobs" / job.id / "checkpoints"
        eventually(lambda: not published.exists(), 20)
