"""Scores of streamed models: those of models in memory, to the bit, whatever the chunks and wherever they stop."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.support import tiny_models
from tests.support.peak_memory import NEEDS_PROC, peak_of
from tests.support.sparse_models import sparse_model
from tests.support.tries import some_requests
from wmdp_fast import Requests
from wmdp_fast.checkpoints.stored_rows import StoredRows
from wmdp_fast.evaluation import evaluate
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models import fits, locate
from wmdp_fast.models.load import load_model, load_streamed
from wmdp_fast.models.tokenizer_only import load_tokenizer_only
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.scoring import lm_head
from wmdp_fast.scoring import streamed as streamed_scoring
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions
from wmdp_fast.scoring.journal import Journal
from wmdp_fast.scoring.model_source import model_source
from wmdp_fast.scoring.rolling import score_windows
from wmdp_fast.scoring.scores import PartialScores
from wmdp_fast.scoring.trie import score, score_trie

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.models.load import LoadedModel


def both(folder: Path, dtype: str = "float32", tokenizer: Any = None) -> tuple[LoadedModel, LoadedModel]:
    """A model in memory and streamed."""
    name = str(folder)
    opened = load_tokenizer_only(
        name,
        tokenizer=tokenizer or tiny_models.tokenizer(),
        revision=None,
        trust_remote_code=False,
        files=locate.locate_model(name, revision=None),
    )
    whole = load_model(name, dtype=dtype, device="cpu", opened=opened)
    return whole, load_streamed(name, 1 << 40, dtype=dtype, device="cpu", opened=opened)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for family in (*tiny_models.TRIE_FAMILIES, *tiny_models.PADDED_FAMILIES):
        folders[family] = tmp_path_factory.mktemp("streamed") / family
        tiny_models.build(family).save_pretrained(folders[family])
    return folders


def with_chunks(model: LoadedModel, most_tokens: int) -> LoadedModel:
    assert model.streamed is not None
    return replace(model, streamed=replace(model.streamed, most_tokens=most_tokens))


@pytest.mark.parametrize("wide", ["norm", "embed_tokens", "lm_head", "layers.1"])
@pytest.mark.parametrize(
    "shards", [(), ("",), ("float32",), ("bfloat16",)], ids=["one file", "two", "float32", "bfloat16"]
)
def test_a_checkpoint_of_two_types_that_names_none_is_of_the_type_that_it_has_in_memory(
    wide: str, shards: tuple[str, ...], saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(saved["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "model.safetensors"
    tensors = {name: one if wide in name else one.bfloat16() for name, one in load_file(path).items()}
    if not shards:
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        path.unlink()
        names = [sorted(tensors)[::2], sorted(tensors)[1::2]]
        files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        for file, own in zip(files, names, strict=True):
            save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
        places = {name: file for file, own in zip(files, names, strict=True) for name in own}
        about = {"dtype": shards[0]} if shards[0] else {}
        index = {"metadata": {"total_size": 1, **about}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole, streamed = both(folder, "auto")
    assert whole.dtype == streamed.dtype
    expected, found = (score(one, some_requests(), token_budget=16) for one in (whole, streamed))
    np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", [*tiny_models.TRIE_FAMILIES, *tiny_models.PADDED_FAMILIES])
def test_scores_are_those_of_the_model_in_memory(family: str, dtype: str, saved: dict[str, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, streamed = both(saved[family], dtype)
        expected = score(whole, some_requests(), token_budget=16)
        for most_tokens in (1, 40, 1 << 30) if family in ("llama", "gpt_oss", "falcon") else (40,):
            found = score(with_chunks(streamed, most_tokens), some_requests(), token_budget=16)
            np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)
            np.testing.assert_array_equal(found.is_greedy, expected.is_greedy)
            assert (found.engine, found.batches) == (expected.engine, expected.batches)


def test_texts_are_read_in_chunks_too(saved: dict[str, Path]) -> None:
    for family in ("llama", "gemma2"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole, streamed = both(saved[family])
            expected = score_windows(whole, some_requests(), token_budget=32)
            found = score_windows(with_chunks(streamed, 40), some_requests(), token_budget=32)
        np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)


def test_a_run_that_is_stopped_goes_on_with_the_same_bits(saved: dict[str, Path], tmp_path: Path) -> None:
    whole, streamed = both(saved["llama"])
    requests, streamed = some_requests(), with_chunks(streamed, 20)
    expected = score_trie(whole, requests, token_budget=8)
    for stop in (0, 4, 6):
        folder, run = tmp_path / str(stop), {"model": "made up"}

        def interrupt(done: int, _total: int, stop: int = stop) -> None:
            if done > stop:
                raise KeyboardInterrupt

        with contextlib.closing(Journal.open(folder, run, resume=False)) as journal:
            partial = PartialScores.resumed(requests.num_choices, journal)
            with pytest.raises(KeyboardInterrupt):
                score_trie(streamed, requests, token_budget=8, partial=partial, progress=interrupt)
        # Four chunks of two layers: what three of them have scored is kept.
        assert partial.finished.any() or stop < 6
        assert not partial.finished.all()
        assert streamed.streamed is not None
        assert all(one.is_meta for one in streamed.streamed.skeleton.decoder.layers.parameters())
        # By a model in memory or streamed, in chunks of any size.
        for again in (with_chunks(streamed, 33), whole):
            shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
            with contextlib.closing(Journal.open(tmp_path / "copy", run, resume=True)) as journal:
                kept = PartialScores.resumed(requests.num_choices, journal)
                found = score_trie(again, requests, token_budget=8, partial=kept)
            np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_vocabulary_in_small_parts_gives_the_same_bits(
    family: str, saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm_head, "LM_HEAD_PART", 7)
    monkeypatch.setattr(StoredRows, "keep", property(lambda _: 0, lambda *_: None), raising=False)
    whole, streamed = both(saved[family])
    assert streamed.streamed is not None
    skeleton = streamed.streamed.skeleton
    assert skeleton.has_rows(skeleton.embedding)
    assert skeleton.has_rows(skeleton.head)
    expected = score(whole, some_requests(), token_budget=16)
    found = score(with_chunks(streamed, 40), some_requests(), token_budget=16)
    np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)
    # Read for each batch of each chunk again, as nothing stays.
    assert streamed.streamed.cost.bytes_read > 3 * skeleton.head.stored_bytes


def test_an_embedding_that_is_not_called_is_refused(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, streamed = both(saved["llama"])
    monkeypatch.setattr(StoredRows, "read", lambda *_: None)
    with pytest.raises(ModelError, match="LlamaForCausalLM does not call its embedding as others do"):
        score(with_chunks(streamed, 40), some_requests(), token_budget=16)


def test_progress_is_by_layers(saved: dict[str, Path]) -> None:
    _, streamed = both(saved["llama"])
    steps: list[tuple[int, int]] = []
    score_trie(with_chunks(streamed, 20), some_requests(), token_budget=8, progress=lambda *step: steps.append(step))
    done = [step[0] for step in steps]
    assert done == list(range(1, len(done) + 1))
    assert steps[-1][0] == steps[-1][1]


def test_progress_of_a_resumed_run_is_of_what_is_left(saved: dict[str, Path], tmp_path: Path) -> None:
    _, streamed = both(saved["llama"])
    streamed, requests, steps = with_chunks(streamed, 20), some_requests(), list[tuple[int, int]]()

    def interrupt(done: int, _total: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    run = {"model": "made up"}
    with contextlib.closing(Journal.open(tmp_path, run, resume=False)) as journal:
        partial = PartialScores.resumed(requests.num_choices, journal)
        with pytest.raises(KeyboardInterrupt):
            score_trie(streamed, requests, token_budget=8, partial=partial, progress=interrupt)
    with contextlib.closing(Journal.open(tmp_path, run, resume=True)) as journal:
        partial = PartialScores.resumed(requests.num_choices, journal)
        score_trie(streamed, requests, token_budget=8, partial=partial, progress=lambda *step: steps.append(step))
    # Three of some chunks of two layers, of which it never says that there are many more.
    assert [done for done, _ in steps] == [1, 2, 3, 4, 5, 6], steps
    assert {total for _, total in steps} == {6}, steps


def test_too_little_memory_is_said_before_the_run(saved: dict[str, Path]) -> None:
    _, streamed = both(saved["llama"])
    assert streamed.streamed is not None
    little = replace(streamed, streamed=replace(streamed.streamed, memory=100_000_000))
    with pytest.raises(ModelError, match=r"memory 0.1 GB is too little: .* are taken before the run"):
        score(little, some_requests(), engine="trie")


def test_what_differs_from_the_plain_order_is_refused(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, streamed = both(saved["llama"])
    finish = streamed_scoring.finish

    def slightly_off(decoder: Any, batch: Any) -> Any:
        batch.hidden = batch.hidden * (1 + 1e-6)
        return finish(decoder, batch)

    monkeypatch.setattr(streamed_scoring, "finish", slightly_off)
    with pytest.raises(ModelError, match="cannot be streamed: tried on excerpts, log-likelihoods layer by layer"):
        score(streamed, some_requests())


def test_evaluate_streams_what_does_not_fit(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [{"question": f"made up {number}?", "choices": ["a", "b", "c", "d"], "answer": 0} for number in range(4)]
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tiny_models.tokenizer().save_pretrained(saved["llama"])
    model: dict[str, Any] = {"model": saved["llama"], "tasks": questions, "device": "cpu"}
    expected = evaluate(**model)
    assert "streamed" not in expected.details
    streamed = evaluate(**model, stream=True)
    assert "streaming 2 layers of up to" in capsys.readouterr().err
    assert streamed.details["streamed"]["bytes_read"] > 0
    monkeypatch.setattr(fits._rust, "available_memory", lambda: 1000)
    monkeypatch.setattr(fits, "_SHARE", 1e6)
    monkeypatch.setattr(fits, "_LIBRARIES", 1e12)
    with pytest.warns(WmdpFastWarning, match="does not fit into the memory that is free: its layers are read when"):
        automatic = evaluate(**model, progress=False)
    for found in (streamed, automatic):
        assert found.to_json()["results"] == expected.to_json()["results"]
    (tmp_path / "delta.safetensors").touch()
    with pytest.raises(ModelError, match="with which it is not streamed: `wmdp-fast apply-delta` makes a"):
        evaluate(**model | {"model": f"{saved['llama']}+{tmp_path}"}, stream=True)
    # What needs the weights themselves, as attacks do, opens models with these.
    opened = model_source(saved["llama"], LoadOptions(), ScoreOptions()).open(lambda _: None, PhaseClock())
    assert opened.progress == ("input", "scoring")
    with pytest.raises(ValueError, match="memory must be an amount such as 16GB or 800MB, not 'much'"):
        evaluate(**model, memory="much")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_model(real_weights: Path, dtype: str) -> None:
    whole, streamed = both(real_weights, dtype, str(real_weights))
    texts = [
        f"The following are questions about gulls.\n\nHow many gulls are {number}?\nAnswer:" for number in range(6)
    ]
    contexts = [whole.tokenizer(text).input_ids for text in texts]
    choices = [[whole.tokenizer(f" {letter}").input_ids for letter in "ABCD"] for _ in contexts]
    requests = Requests.from_tokens(contexts, choices, max_length=2048)
    for engine in ("trie", "padded"):
        expected = score(whole, requests, engine=engine, token_budget=48)
        for most_tokens in (1, 60, 1 << 30):
            found = score(with_chunks(streamed, most_tokens), requests, engine=engine, token_budget=48)
            np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)


@NEEDS_PROC
@pytest.mark.parametrize(
    "shape",
    [{"layers": 36}, {"layers": 3, "vocabulary": 200_000}, {"layers": 3, "vocabulary": 400_000, "tied": True}],
    ids=["deep", "wide", "wide, tied"],
)
def test_a_process_keeps_to_its_memory(shape: dict[str, int], tmp_path: Path) -> None:
    limit, weights = 1_100_000_000, sparse_model(tmp_path / "model", **shape)
    questions = tmp_path / "questions.jsonl"
    rows = [{"question": f"made up {number}?", "choices": ["a", "b", "c", "d"], "answer": 0} for number in range(4)]
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ["eval", str(tmp_path / "model"), "--tasks", str(questions), "--memory", f"{limit}", "--device", "cpu"]
    peak, told = peak_of(*command)
    assert f"streaming {shape['layers']} layers of up to 0.028 GB in memory of 1.1 GB: about " in told
    # The libraries alone take most of it, so that the whole model would not fit.
    assert weights > 1_000_000_000
    assert peak < limit
