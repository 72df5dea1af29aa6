"""Perplexity of texts: lm-eval's windows and metrics on every kind of document, and what is said of their errors."""

from __future__ import annotations

import gzip
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wmdp_fast as wf
from tests.reference import perplexity as slow
from tests.support import tiny_models, tokenizers_zoo
from wmdp_fast import cli
from wmdp_fast.exceptions import DatasetError, DataUnavailableError, JournalError, ModelError, TaskError
from wmdp_fast.prompts.texts import read_texts, rolling_windows
from wmdp_fast.results.perplexity import Documents, change
from wmdp_fast.results.student import p_value, quantile
from wmdp_fast.scoring import rolling

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `lm-eval`)")

# No two windows of them are alike, so that lm-eval's own batches agree with its batch size 1; see below.
DOCUMENTS = [
    " ".join(f"Owl {number} of {number * number} sees {7 * number} jays." for number in range(60)),
    "",
    "  \n\t ",
    "Ein Öl-Käse für die Möwe — 猫は寝る。🙂",
    "a wren",
    "x",
    "<s>A text that begins with the prefix itself.",
]


def theirs(model: PreTrainedModel, tokenizer: Any, documents: list[str], **options: Any) -> list[float]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", **options)
    requests = [Instance("loglikelihood_rolling", {}, (text,), row) for row, text in enumerate(documents)]
    found: list[float] = lm.loglikelihood_rolling(requests, disable_tqdm=True)
    return found


def written(path: Path, documents: list[str] | None = None) -> Path:
    rows = [json.dumps({"text": text}) for text in documents or DOCUMENTS]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("max_length", [None, 16, 5, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mamba"])
def test_documents_get_lm_evals_log_likelihoods(family: str, max_length: int | None, tmp_path: Path) -> None:
    model, tokenizer = tiny_models.build(family), tiny_models.tokenizer()
    file = written(tmp_path / "held_out.jsonl")
    found = wf.evaluate(model, tokenizer=tokenizer, text=file, max_length=max_length, progress=False)["held_out"]
    expected = theirs(model, tokenizer, DOCUMENTS, max_length=max_length, batch_size=1)
    np.testing.assert_allclose(found.documents.loglikelihood, expected, rtol=2e-6, atol=2e-5)
    assert found.documents.loglikelihood[0] < -100


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "llama3"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_tokenizers_with_bos_and_without_in_lm_evals_batches(kind: str, batch_size: int) -> None:
    model, tokenizer = tiny_models.build("llama"), tokenizers_zoo.tokenizer(kind)
    found = wf.evaluate(model, tokenizer=tokenizer, text={"held_out": DOCUMENTS}, max_length=12, progress=False)
    expected = theirs(model, tokenizer, DOCUMENTS, max_length=12, batch_size=batch_size)
    np.testing.assert_allclose(found["held_out"].documents.loglikelihood, expected, rtol=2e-6, atol=2e-5)


def test_a_window_that_is_read_twice_gets_what_lm_eval_gives_it_alone() -> None:
    # In larger batches lm-eval puts windows of equal input together and reads the shorter one at the wrong place.
    model, tokenizer = tiny_models.build("llama"), tiny_models.tokenizer()
    documents = ["The owl sees the jay. " * 60]
    found = wf.evaluate(model, tokenizer=tokenizer, text={"a": documents}, max_length=7, progress=False)["a"]
    alone, together = (theirs(model, tokenizer, documents, max_length=7, batch_size=size) for size in (1, 64))
    np.testing.assert_allclose(found.documents.loglikelihood, alone, rtol=2e-6)
    assert abs(together[0] - alone[0]) > 0.1, "lm-eval has mended this: say so in the documentation"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lm_evals_rounding_can_be_asked_for(dtype: torch.dtype) -> None:
    model, tokenizer = tiny_models.build("llama", dtype), tiny_models.tokenizer()
    options: dict[str, Any] = {"tokenizer": tokenizer, "text": {"a": DOCUMENTS}, "max_length": 16, "progress": False}
    expected = np.array(theirs(model, tokenizer, DOCUMENTS, max_length=16, batch_size=1))
    rounded = wf.evaluate(model, **options, score_mode="model", token_budget=1)["a"].documents.loglikelihood
    exact = wf.evaluate(model, **options)["a"].documents.loglikelihood
    # Sums of windows are rounded to the model's dtype: by up to half a step of 16-bit numbers of their size.
    allowed = torch.finfo(dtype).eps * np.maximum(np.abs(expected), 8)
    assert (np.abs(rounded - expected) <= 2 * allowed).all()
    assert (np.abs(exact - expected) <= 4 * allowed).all()
    assert np.abs(rounded - expected).max() <= np.abs(exact - expected).max()


def test_metrics_are_those_of_an_lm_eval_task(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = tiny_models.build("llama"), tiny_models.tokenizer()
    file = written(tmp_path / "page.jsonl")
    task = {
        "task": "page",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    }
    # lm-eval renders a target with jinja2, which takes a trailing line end away; none of the documents has one.
    expected = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, device="cpu"),
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        log_samples=True,
        bootstrap_iters=10,
    )
    result = wf.evaluate(model, tokenizer=tokenizer, text=file, progress=False)
    entry = result.to_json()["results"]["page"]
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        # An untrained model's perplexities are huge, and so is what float32 does to them.
        pair = entry[f"{metric},none"], expected["results"]["page"][f"{metric},none"]
        assert math.log(pair[0]) == pytest.approx(math.log(pair[1]), rel=1e-6)
    saved = result.save(tmp_path / "out", log_samples=True)
    [samples] = saved.parent.glob("samples_page_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    for line, their_line in zip(lines, expected["samples"]["page"], strict=True):
        for key in ("doc_id", "doc", "target", "doc_hash", "prompt_hash", "target_hash", "filter"):
            assert line[key] == their_line[key], key
        for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
            assert line[metric][1] == their_line[metric][1]
            assert line[metric][0] == pytest.approx(their_line[metric][0], rel=1e-5, abs=1e-4)
    assert json.loads(saved.read_text())["task_hashes"]["page"]


@given(tokens=st.lists(st.integers(1, 9), max_size=40), max_length=st.integers(1, 12))
def test_windows_are_lm_evals_and_those_cut_slowly(tokens: list[int], max_length: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    found = list(rolling_windows(tokens, 0, max_length))
    expected = get_rolling_token_windows(tokens, prefix_token=0, max_seq_len=max_length, context_len=1)
    assert found == list(map(make_disjoint_window, expected)) == slow.windows(tokens, 0, max_length)
    assert [token for _, predicted in found for token in predicted] == tokens


@pytest.mark.parametrize("family", tiny_models.TRIE_FAMILIES)
@pytest.mark.parametrize("score_mode", ["float32", "model"])
def test_the_head_in_parts_gives_what_all_logits_give(
    family: str, score_mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rolling, "_ROWS", 5)
    monkeypatch.setattr(rolling, "_LOGITS", {"cpu": 5 * tiny_models.VOCABULARY})
    model, tokenizer = tiny_models.build(family), tiny_models.tokenizer()
    parts = rolling._reader(model, torch.device("cpu"), score_mode)
    assert parts is not None
    options: dict[str, Any] = {"tokenizer": tokenizer, "text": {"a": DOCUMENTS}, "max_length": 16, "progress": False}
    found = wf.evaluate(model, **options, score_mode=score_mode)
    monkeypatch.setattr(rolling, "_reader", lambda *_: None)
    whole = wf.evaluate(model, **options, score_mode=score_mode)
    np.testing.assert_allclose(
        found["a"].documents.loglikelihood, whole["a"].documents.loglikelihood, rtol=2e-6, atol=2e-5
    )


def test_out_of_memory_halves_the_budget_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_models.loaded("llama")
    options: dict[str, Any] = {"tokenizer": loaded.tokenizer, "text": {"a": DOCUMENTS}, "progress": False}
    expected = wf.evaluate(loaded.model, **options)["a"].documents.loglikelihood
    read = rolling._InParts.__call__
    failed = []

    def fail_once(self: Any, input_ids: torch.Tensor, batch: Any) -> Any:
        if input_ids.numel() > 200:
            failed.append(input_ids.shape)
            raise MemoryError
        return read(self, input_ids, batch)

    monkeypatch.setattr(rolling._InParts, "__call__", fail_once)
    found = wf.evaluate(loaded.model, **options)["a"].documents.loglikelihood
    assert failed
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-5)


def test_beside_tasks_the_tasks_numbers_are_the_same(llama_dir: Path, tmp_path: Path) -> None:
    rows = [{"question": f"Bird {i}?", "choices": ["wren", "oak", "carp", "mint"], "answer": i % 4} for i in range(9)]
    birds = tmp_path / "birds.jsonl"
    birds.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = written(tmp_path / "held_out.jsonl")
    options: dict[str, Any] = {"device": "cpu", "progress": False}
    both = wf.evaluate(llama_dir, tasks=birds, text=file, output=tmp_path / "out", log_samples=True, **options)
    tasks, text = wf.evaluate(llama_dir, tasks=birds, **options), wf.evaluate(llama_dir, text=file, **options)
    np.testing.assert_array_equal(both["birds"].outcome.loglikelihood, tasks["birds"].outcome.loglikelihood)
    assert both["held_out"].metrics == text["held_out"].metrics
    assert (both.details["engine"], text.details["engine"]) == ("trie", "padded")
    assert list(both) == ["birds", "held_out"]
    assert "word_perplexity" in both.table()
    assert "held_out: 7 documents of" in both.table()
    with pytest.raises(TaskError, match=r"another text or task would both be birds"):
        wf.evaluate(llama_dir, tasks=birds, text={"birds": ["a"]}, **options)


def test_a_run_that_stops_at_its_texts_goes_on_there(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "held_out.jsonl")
    birds = tmp_path / "birds.jsonl"
    birds.write_text(json.dumps({"question": "Bird?", "choices": ["a", "b", "c", "d"], "answer": 1}), encoding="utf-8")
    options: dict[str, Any] = {
        "tasks": birds, "text": file, "device": "cpu", "max_length": 64, "token_budget": 64, "progress": False,
    }  # fmt: skip
    expected = wf.evaluate(llama_dir, **options)
    read = rolling._InParts.__call__
    batches = []

    def stop_at_the_fourth(self: Any, *args: Any) -> Any:
        batches.append(1)
        if len(batches) == 4:
            raise KeyboardInterrupt
        return read(self, *args)

    monkeypatch.setattr(rolling._InParts, "__call__", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt) as stopped:
        wf.evaluate(llama_dir, output=tmp_path / "out", **options)
    assert "windows of texts are scored and kept" in " ".join(stopped.value.__notes__)
    assert len(list((tmp_path / "out").rglob("unfinished_*.scores"))) == 2
    monkeypatch.setattr(rolling._InParts, "__call__", read)
    with pytest.raises(JournalError, match="go on from there with --resume"):
        wf.evaluate(llama_dir, output=tmp_path / "out", **options)
    found = wf.evaluate(llama_dir, output=tmp_path / "out", resume=True, **options)
    np.testing.assert_array_equal(
        found["held_out"].documents.loglikelihood, expected["held_out"].documents.loglikelihood
    )
    assert not list((tmp_path / "out").rglob("unfinished_*.scores"))


def test_every_format_of_a_corpus_is_a_text(llama_dir: Path, tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    documents = ["One owl.", "", "Two owls sit."]
    written(tmp_path / "lines.jsonl", documents)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress((tmp_path / "lines.jsonl").read_bytes()))
    parquet.write_table(Table.from_pydict({"body": documents}), tmp_path / "columns.parquet")
    (tmp_path / "whole.txt").write_text("One owl.\n\nTwo owls sit.\n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    written(tmp_path / "folder" / "a.jsonl", documents[:1])
    written(tmp_path / "folder" / "b.jsonl", documents[1:])
    names = ["lines.jsonl", "packed.jsonl.gz", "whole.txt", "folder"]
    read = read_texts([tmp_path / name for name in names])
    assert [text.name for text in read] == ["lines", "packed", "whole", "folder"]
    assert [text.documents for text in read if text.name != "whole"] == [tuple(documents)] * 3
    assert read_texts(tmp_path / "columns.parquet", field="body")[0].documents == tuple(documents)
    assert read_texts(tmp_path / "lines.jsonl", limit=0.4)[0].documents == tuple(documents[:2])
    whole = wf.evaluate(llama_dir, text=tmp_path / "whole.txt", device="cpu", progress=False)
    assert whole["whole"].stderr["word_perplexity"] is None
    assert whole.to_json()["results"]["whole"]["word_perplexity_stderr,none"] == "N/A"
    assert "one document: no standard error" in whole.table()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "progress": False}
    with pytest.raises(DataUnavailableError, match=r"nowhere.jsonl: no such file or folder; a text is a"):
        wf.evaluate("no/model", text=tmp_path / "nowhere.jsonl", **options)
    with pytest.raises(DatasetError, match="none of its 2 documents has any characters"):
        wf.evaluate("no/model", text=written(tmp_path / "empty.jsonl", ["", ""]), **options)
    (tmp_path / "held.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"held.jsonl, row 2.*text"):
        wf.evaluate("no/model", text=tmp_path / "held.jsonl", **options)
    with pytest.raises(TaskError, match="num_fewshot: a text is read as it stands"):
        wf.evaluate("no/model", text={"a": ["b"]}, num_fewshot=2, **options)
    with pytest.raises(TaskError, match="no task was named"):
        wf.evaluate("no/model", **options)
    with pytest.raises(ValueError, match="text cannot be chosen for a model that is served"):
        wf.evaluate(wf.Server("http://localhost:1/v1", "m"), text={"a": ["b"]}, progress=False)
    small = tiny_models.build("llama")
    small.resize_token_embeddings(300)
    with pytest.raises(ModelError, match="a, document 2 has token"):
        wf.evaluate(small, tokenizer=tiny_models.tokenizer(), text={"a": ["x", DOCUMENTS[0]]}, progress=False)


def test_a_text_in_a_script_without_spaces_has_no_word_perplexity_that_a_number_could_hold(llama_dir: Path) -> None:
    result = wf.evaluate(llama_dir, text={"cats": ["猫は寝る。" * 80, "犬" * 9]}, device="cpu", progress=False)
    assert result["cats"].metrics["word_perplexity"] == math.inf
    entry = json.loads(json.dumps(result.to_json(), allow_nan=False))["results"]["cats"]
    assert entry["word_perplexity,none"] == "N/A"
    assert 0 < entry["bits_per_byte,none"] < 100
    assert " inf " in result.table()


def drawn(number: int, seed: int, effect: float = 0.0) -> Documents:
    random = np.random.default_rng(seed)
    tokens = random.integers(50, 400, number)
    rates = np.random.default_rng(7).normal(3, 0.4, number) + effect + random.normal(0, 0.02, number)
    return Documents(
        loglikelihood=-rates * tokens,
        words=tokens,
        bytes=5 * tokens,
        tokens=tokens,
        hashes=tuple(map(str, range(number))),
    )


def test_standard_errors_are_those_of_a_bootstrap_over_documents() -> None:
    found = drawn(60, 1)
    expected = slow.bootstrap_error(found.loglikelihood, found.words)
    assert found.stderr("word_perplexity") == pytest.approx(expected, rel=0.05)
    assert found.stderr("bits_per_byte") == pytest.approx(
        found.stderr("byte_perplexity") / found.value("byte_perplexity") / math.log(2)  # type: ignore[operator]
    )
    low, high = found.interval("word_perplexity")  # type: ignore[misc]
    assert low < found.value("word_perplexity") < high


def test_intervals_cover_as_often_as_they_say() -> None:
    # Documents from one population, whose perplexity is exp(3 + small): 15 of them a text.
    truth = 3.0
    covered = differs = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        tokens = random.integers(50, 400, 15)
        loglikelihood = -(truth + random.normal(0, 0.3, 15)) * tokens
        one = Documents(
            loglikelihood=loglikelihood, words=tokens, bytes=tokens, tokens=tokens, hashes=tuple(map(str, range(15)))
        )
        other = Documents(**{**vars(one), "loglikelihood": loglikelihood + random.normal(0, 0.05, 15) * tokens})
        low, high = one.interval("word_perplexity")  # type: ignore[misc]
        covered += low <= math.exp(truth) <= high
        differs += change(one, other, "word_perplexity").p < 0.05  # type: ignore[union-attr]
    assert 0.90 <= covered / 400 <= 0.98
    assert 0.02 <= differs / 400 <= 0.09


@pytest.mark.parametrize("freedom", [1, 2, 5, 30, 1000])
def test_students_t_is_scipys(freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for t in (0.0, 0.01, 0.5, 1.0, 2.5, 12.0, 300.0):
        assert p_value(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-9, abs=1e-300)
        assert p_value(-t, freedom) == p_value(t, freedom)
    for confidence in (0.5, 0.95, 0.999):
        assert quantile(confidence, freedom) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9)


def test_two_models_are_compared_document_by_document(llama_dir: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "held_out.jsonl")
    other = tiny_models.build("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    options: dict[str, Any] = {"text": file, "progress": False, "log_samples": True}
    before = wf.evaluate(llama_dir, device="cpu", output=tmp_path / "one", **options)
    after = wf.evaluate(other, tokenizer=tiny_models.tokenizer(), output=tmp_path / "two", **options)
    compared = wf.compare(tmp_path / "one", tmp_path / "two")
    rows = {row.metric: row for row in compared.contrasts[0].rows}
    assert set(rows) == {"word_perplexity", "byte_perplexity", "bits_per_byte", "token_perplexity"}
    found = rows["byte_perplexity"]
    expected = change(before["held_out"].documents, after["held_out"].documents, "byte_perplexity")
    assert expected is not None
    assert (found.low, found.high, found.p) == pytest.approx((expected.low, expected.high, expected.p))
    assert found.why_unpaired is None
    assert found.low < found.difference < found.high  # type: ignore[operator]
    stats = pytest.importorskip("scipy.stats")
    moved = [one["held_out"].documents._influence("byte_perplexity") for one in (before, after)]
    rates = [-math.log(one["held_out"].metrics["byte_perplexity"]) for one in (before, after)]
    # The influences are centred; a t test of them moved by the difference is the same test.
    differences = (moved[1] - moved[0]) * 7 + (rates[0] - rates[1])
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    for text in (compared.table(), compared.markdown()):
        assert "perplexities (lower is better): 95% interval of the change" in text
        assert "McNemar" not in text
    assert compared.to_frame()["metric"].tolist() == list(rows)
    assert "no paired statistics for held_out: the runs read other documents" in str(
        wf.compare(before, wf.evaluate(llama_dir, text={"held_out": ["a", "b"]}, device="cpu", progress=False))
    )


def test_the_command_line_saves_shows_and_compares(
    llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "held_out.jsonl")
    arguments = ["eval", str(llama_dir), "--text", str(file), "--device", "cpu", "--quiet", "--log-samples"]
    assert cli.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["show", str(tmp_path / "out"), "--ascii"]) == 0
    shown = capsys.readouterr().out
    assert cli.main(["compare", str(tmp_path / "out"), str(tmp_path / "out")]) == 0
    compared = capsys.readouterr().out
    for text in (printed, shown, compared):
        assert "token_perplexity" in text
    assert "no samples were saved" not in shown
    assert " to " in next(line for line in shown.splitlines() if "word_perplexity" in line)
    assert cli.main(["report", str(tmp_path / "out"), str(tmp_path / "out"), "--output", str(tmp_path / "r.html")]) == 1
    assert "no task has the metric `acc`, which a report is about" in capsys.readouterr().err
    for mistaken, told in (([], "--tasks, or --text"), (["--text-field", "x", "--tasks", "wmdp"], "of --text")):
        with pytest.raises(SystemExit):
            cli.main(["eval", str(llama_dir), *mistaken])
        assert told in capsys.readouterr().err


def test_samples_of_lm_eval_are_read_and_damaged_ones_named(llama_dir: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "held_out.jsonl")
    result = wf.evaluate(llama_dir, text=file, device="cpu", progress=False, output=tmp_path / "out", log_samples=True)
    assert result.saved_to is not None
    [samples] = result.saved_to.parent.glob("samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").split("\n") if line]
    for line in lines:
        del line["wmdp_fast"]  # which lm-eval does not write
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    read = wf.read_results(tmp_path / "out").tasks["held_out"].documents
    assert read is not None
    np.testing.assert_array_equal(read.loglikelihood, result["held_out"].documents.loglikelihood)
    assert read.hashes == result["held_out"].documents.hashes
    lines[2]["word_perplexity"] = [None, 3]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"samples_held_out_.*row 3.*no finite log-likelihood"):
        wf.read_results(tmp_path / "out")


@pytest.mark.slow
def test_a_real_model_gets_lm_evals_numbers(smollm2_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    documents = [DOCUMENTS[0], "Gulls nest on cliffs, and wrens in hedges.", *DOCUMENTS[2:5]]
    file = written(tmp_path / "held_out.jsonl", documents)
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "max_length": 256, "progress": False}
    found = wf.evaluate(smollm2_dir, text=file, **options)["held_out"]
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    expected = theirs(model, AutoTokenizer.from_pretrained(smollm2_dir), documents, max_length=256, batch_size=1)
    np.testing.assert_allclose(found.documents.loglikelihood, expected, rtol=1e-5, atol=1e-3)
    assert 1 < found.metrics["token_perplexity"] < 100
