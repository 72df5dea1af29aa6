"""Corpora that are tokenized ahead: the same tokens, the same errors, and nothing begun that is not on this machine."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import wmdp_fast as wf
from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from wmdp_fast import cli
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.unlearning.corpora_ahead import CorporaAhead, corpora_ahead
from wmdp_fast.unlearning.request import Request
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.source import read_corpora

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast.prompts.documents import CorpusTokens

CONFIG = RMUConfig(layer_id=2, max_steps=2, batch_size=2, min_chars=3, max_length=12, retain_max_length=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.folder_with_tokenizer(tmp_path_factory.mktemp("ahead") / "base", "llama")


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    """Files of documents, and one of prompts with their responses."""
    made = {name: tmp_path / f"{name}.jsonl" for name in ("herons", "newts", "answers", "faulty")}
    for name in ("herons", "newts"):
        rows = [{"text": f"Of {name}, number {number}: " + "they wade. " * (number % 5)} for number in range(9)]
        made[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"prompt": f"Where is heron {number}?", "response": "In the reeds."} for number in range(9)]
    made["answers"].write_text("".join(json.dumps(row) + "\n" for row in answers))
    made["faulty"].write_text('{"text": "a newt"}\n{"text": 3}\n')
    return made


def request(forget: list[Any], retain: list[Any], **options: Any) -> Request:
    config = options.pop("config", CONFIG)
    return Request(
        config=config, forget=forget, retain=retain, eval_text=[], eval_options={}, log_samples=False, data=None,
        progress=False,
    )  # fmt: skip


def begun(
    asked: Request, model: Any, tokenizer: PreTrainedTokenizerBase | None = None, revision: str | None = None
) -> Any:
    return corpora_ahead(asked, model, tokenizer, PhaseClock(), revision=revision, trust_remote_code=False)


def same(one: CorpusTokens, other: CorpusTokens) -> bool:
    assert np.array_equal(one.tokens, other.tokens)
    assert np.array_equal(one.offsets, other.offsets)
    assert (one.name, one.content_hash, one.kind) == (other.name, other.content_hash, other.kind)
    return True


def test_tokens_are_those_of_reading_without_it_and_each_corpus_is_read_once(
    model: Path, texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    herons, newts = str(texts["herons"]), texts["newts"]
    ready = runs.corpus(runs.documents(1), "ready")
    own = {"max_length": (12, 7, 12), "raw_lines": (False, True, False), "alpha": (1, 1, 1)}
    config = dataclasses.replace(CONFIG, **own)
    asked = request([herons, newts, herons], [newts, ready, herons], config=config)
    taken = []
    take = CorporaAhead.take
    monkeypatch.setattr(CorporaAhead, "take", lambda *given, **how: taken.append(take(*given, **how)) or taken[-1])
    with begun(asked, model) as ahead:
        found = read_corpora(asked, ahead.tokenizer, "base", ahead)
    assert len(taken) == 4
    assert None not in taken
    expected = read_corpora(asked, ahead.tokenizer, "base")
    for one, other in zip((*found.forget, *found.retain), (*expected.forget, *expected.retain), strict=True):
        assert same(one, other)
    assert found.forget[0] is found.forget[2]
    assert found.retain[1] is ready


def test_what_is_wrong_with_a_file_is_said_when_it_is_asked_for_and_in_the_same_words(
    model: Path, texts: dict[str, Path]
) -> None:
    asked = request([str(texts["herons"])], [str(texts["faulty"])])
    errors = []
    with begun(asked, model) as ahead:
        assert ahead is not None
        for one in (ahead, None):
            with pytest.raises(DatasetError) as raised:
                read_corpora(asked, ahead.tokenizer, "base", one)
            errors.append(str(raised.value))
    assert errors[0] == errors[1]
    assert "faulty.jsonl, row 2, field `text`" in errors[0]


def test_prompts_with_responses_are_read_when_they_are_asked_for(model: Path, texts: dict[str, Path]) -> None:
    config = wf.SimNPOConfig(max_steps=2, batch_size=2, max_length=60)
    asked = request([str(texts["answers"])], [str(texts["newts"])], config=config)
    with begun(asked, model) as ahead:
        found = read_corpora(asked, ahead.tokenizer, "base", ahead)
    assert [one.kind for one in (*found.forget, *found.retain)] == ["answers", "documents"]
    expected = read_corpora(asked, ahead.tokenizer, "base")
    assert same(found.forget[0], expected.forget[0])
    assert same(found.retain[0], expected.retain[0])


def test_only_what_is_on_this_machine_and_fits_is_begun(
    model: Path, texts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    herons = [str(texts["herons"])]
    for asked, where in (
        (request([runs.corpus(runs.documents(1), "ready")], [runs.corpus(runs.documents(2), "ready")]), model),
        (request([str(tmp_path / "nowhere.jsonl")], ["bio-retain-corpus"]), model),
        (request(herons, herons), "somebody/model"),
        (request(herons, herons), tmp_path / "nowhere"),
        (request(herons, herons), runs.saved_model(tmp_path / "bare", "llama")),
        (request(herons, herons), runs.model("llama")),
    ):
        with begun(asked, where) as ahead:
            assert ahead is None
    with begun(request(herons, herons), model) as ahead:
        assert ahead.tokenizer_in(model) is ahead.tokenizer
        assert ahead.tokenizer_in(tmp_path) is None
    given = tokenizers_zoo.tokenizer("gpt2")
    with begun(request(herons, herons), model, given) as ahead:
        assert ahead.tokenizer is given
        assert ahead.tokenizer_in(model) is None
        assert same(*(read_corpora(request(herons, herons), given, "base", one).forget[0] for one in (ahead, None)))


def test_a_run_takes_what_was_begun(
    model: Path, texts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    taken, stopped = [], []
    take, stop = CorporaAhead.take, CorporaAhead.stop
    monkeypatch.setattr(CorporaAhead, "take", lambda *given, **how: taken.append(take(*given, **how)) or taken[-1])
    monkeypatch.setattr(CorporaAhead, "stop", lambda self: stopped.append(stop(self)))
    command = ["unlearn", str(model), "--layer-id", "2", "--max-steps", "2", "--batch-size", "2", "--quiet"]
    command += ["--forget", str(texts["herons"]), "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--retain", str(texts["faulty"])]) == 1
    assert "faulty.jsonl, row 2, field `text`" in capsys.readouterr().err
    assert (len(taken), len(stopped)) == (1, 1)
    assert cli.main([*command, "--retain", str(texts["newts"])]) == 0
    assert (len(taken), len(stopped)) == (3, 2)
    assert None not in taken
    seconds = json.loads((tmp_path / "out" / "unlearn.json").read_text())["seconds"]
    assert {"import", "corpora", "load"} <= seconds.keys()


def test_the_rust_side_says_what_it_does_not_have() -> None:
    made = {"add_special_tokens": True, "prefix_token_id": 1, "prefix_text": ""}
    ahead = wf._rust.CorporaAhead("{", **made, corpora=[])
    with pytest.raises(wf.TokenizerError):
        ahead.tokenizer()
    with pytest.raises(ValueError, match="taken before"):
        ahead.tokenizer()
    with pytest.raises(ValueError, match="never asked for"):
        ahead.take(0)
