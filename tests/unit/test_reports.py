"""The children that look into files, from within: parts of files, limits, the tokenizer without torch; and what is reckoned of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from tunesmith.domain import models
from tunesmith.domain.models import CATALOGUE, ModelFacts
from tunesmith.domain.specs import ResolvedSpec, TrainingSpec
from tunesmith.reports import tokens
from tunesmith.store import bases
from tunesmith.training import decoder, defaults, outlook
from tunesmith.training.data import Renderer
from tunesmith.training.tokenizer import load_tokenizer

from ..conftest import write_chat

FACTS = CATALOGUE[models.DEFAULT].facts


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


# --- parts of a file ---


@pytest.mark.parametrize("size", [1, 50, 333, 10**6])
@pytest.mark.parametrize("end", ["", "\n", "\n \n\n"])
def test_parts_are_the_whole_file_once(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, size: int, end: str) -> None:
    monkeypatch.setattr(tokens, "_PART_BYTES", size)
    path = write_chat(tmp_path / "t.jsonl", [(f"{n}?", f"{n}!" * (n % 5)) for n in range(1, 21)])
    path.write_text("\ufeff" + path.read_text().rstrip().replace("\n", "\r\n") + end)
    parts, rows = tokens._parts(path)
    assert rows == 20 and sum(part.size for part in parts) == path.stat().st_size
    job = tokens.Job(path, Renderer(load_tokenizer(tiny)), 64)
    examples = [example for part in parts for example in job.examples(part, 1)]
    assert [example.line for example in examples] == [*range(1, 21)]
    assert [example.messages[0]["content"] for example in examples] == [f"{n}?" for n in range(1, 21)]
    spread = [example.line for part in parts for example in job.examples(part, 7)]
    assert spread == [7, 14]


def test_histograms_show_the_usual_and_the_longest() -> None:
    edges = tokens._edges(tokens.np.array([5] * 980 + [200] * 15 + [5000] * 5)).tolist()
    assert edges[0] == 0 and edges[-1] == 5001 and edges[-2] >= 200 and len(edges) <= 28
    assert tokens._edges(tokens.np.array([3])).tolist() == [0, 1, 2, 3, 4]


# --- the tokenizer ---


@pytest.mark.parametrize("base", ["smollm2", "tiny"])
def test_the_short_way_leads_to_the_same_tokenizer(base: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(base)
    ours, theirs = load_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    assert type(ours) is type(theirs) and ours.chat_template == theirs.chat_template
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map and ours.all_special_ids == theirs.all_special_ids


def test_other_classes_are_left_to_transformers(tiny: Path, tmp_path: Path) -> None:
    """The class is the one that the files name, not ours."""
    other = transformers.GPT2Tokenizer(vocab={"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}, merges=[("a", "b")])
    other.save_pretrained(tmp_path)
    assert type(load_tokenizer(tmp_path)) is transformers.GPT2Tokenizer
    assert type(load_tokenizer(tiny)) is not transformers.GPT2Tokenizer


def test_children_tokenize_without_torch(smollm2: Path) -> None:
    code = "import sys; from pathlib import Path; from tunesmith.reports import check, child, rendered, tokens\n"
    code += f"print(len(child.tokenizer(Path({str(smollm2)!r}))('a b c')['input_ids']), [m for m in sys.modules if m.startswith('torch.')])"
    assert run(code).stdout.strip() == "3 []"


# --- limits ---


def test_too_much_memory_ends_a_child() -> None:
    code = "from tunesmith.reports import child; child._MAX_BYTES = 2**27; child.obey(lambda order: print(len(bytearray({}))))"
    begin = "import sys; sys.argv = ['x', '{}']; "
    assert run(begin + code.format(2**20)).stdout.strip() == str(2**20)
    assert "MemoryError" in run(begin + code.format(2**28)).stderr


# --- what is reckoned of a run ---


def spec(**asked: object) -> ResolvedSpec:
    return defaults.resolve(TrainingSpec.ask("smollm2-135m-instruct", asked, "api"), FACTS, defaults.DataFacts(100, 20), seed=1)


def test_the_catalogue_knows_what_is_on_disk(smollm2: Path) -> None:
    assert bases.facts(smollm2) == FACTS


def test_lora_has_rank_times_width_parameters() -> None:
    assert 16 * FACTS.width == 4_884_480  # as PEFT and `memory` count them


def test_the_fast_path_s_families_are_known() -> None:
    for family in decoder.FAMILIES:
        names = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        assert names[family].startswith(outlook._FAST), family
    assert not names["gpt2"].startswith(outlook._FAST)


@pytest.mark.parametrize(
    ("asked", "trained", "evaluated"),
    [
        ({"n_epochs": 3, "batch_size": 10}, 300, 4 * 20 + 3 * 10),
        ({"n_steps": 25, "n_epochs": None, "batch_size": 10}, 250, 4 * 20 + 2 * 10),
        ({"n_epochs": 1, "batch_size": 30, "eval_interval": None}, 100, 2 * 20),
        ({"n_epochs": 200, "batch_size": 100, "eval_interval": None}, 20_000, 51 * 20),
    ],
)
def test_work_counts_every_row_that_is_computed(asked: dict[str, object], trained: int, evaluated: int) -> None:
    work = outlook.work(spec(**asked), 100, 20, row_tokens=1.0, validation_row_tokens=1.0)
    assert (work.trained, work.evaluated) == (trained, evaluated)


def test_more_work_takes_longer_and_larger_models_more_memory() -> None:
    work = outlook.work(spec(n_epochs=3), 100, 20, 100, 100)
    assert outlook.seconds(work, "lora", 1000) == pytest.approx(10 + work.trained / 1000 + work.evaluated / 2000)
    large = ModelFacts("LlamaForCausalLM", 10 * FACTS.num_parameters, 8192, True, 10 * FACTS.width)
    assert outlook.tokens_per_second(large, "lora")[0] == pytest.approx(outlook.tokens_per_second(FACTS, "lora")[0] / 10)
    small, full = outlook.peak_bytes(FACTS, spec(), 1000), outlook.peak_bytes(FACTS, spec(tuning="full"), 1000)
    assert small < full and 5 * small < outlook.peak_bytes(large, spec(), 1000) < 10 * small
    assert outlook.peak_bytes(FACTS, spec(lora_rank=256), 1000) - small == 16 * 240 * FACTS.width
    assert outlook.peak_bytes(FACTS, spec(), 10**9) == outlook.peak_bytes(FACTS, spec(), 4096)
