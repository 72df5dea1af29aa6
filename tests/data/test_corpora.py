"""Corpora by path and by name: found in folders, in place of the hub, in its cache and on a stand-in for it."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.reference import corpus as reference
from tests.support import tokenizers_zoo
from tests.support.hub_stand_in import Hub, running
from wmdp_fast.data.corpora import CORPORA, find_corpus
from wmdp_fast.exceptions import DatasetError, DataUnavailableError
from wmdp_fast.prompts.documents import load_corpus
from wmdp_fast.prompts.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENIZER = tokenizers_zoo.tokenizer("llama3")
MAIN = "1" * 40
# Rows as WikiText has them: headings and empty lines between paragraphs.
WIKITEXT = ["", " = The wren = \n", " The wren is a small bird . \n", "", " It sings . \n"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(tmp_path / "cache", monkeypatch) as state:
        yield state


def parquet(texts: list[str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), out)
    return out.getvalue()


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def decoded(corpus) -> list[str]:
    return [TOKENIZER.decode(corpus.document(index), skip_special_tokens=True) for index in range(len(corpus))]


# By path.


def test_a_file_a_folder_and_a_list_of_files(tmp_path):
    (tmp_path / "b.jsonl").write_text(lines(["the owl", "", "the hen"]))
    (tmp_path / "a.txt").write_text("the jay")
    (tmp_path / "notes.md").write_text("no corpus")
    (tmp_path / ".hidden.txt").write_text("no corpus")
    one = load_corpus(tmp_path / "b.jsonl", TOKENIZER, max_length=16)
    assert (one.name, decoded(one), one.revision) == (str(tmp_path / "b.jsonl"), ["the owl", "the hen"], None)
    assert decoded(load_corpus(str(tmp_path), TOKENIZER, max_length=16)) == ["the jay", "the owl", "the hen"]
    both = load_corpus([tmp_path / "b.jsonl", tmp_path / "a.txt"], TOKENIZER, max_length=16, num_documents=3)
    assert decoded(both) == ["the owl", "the hen", "the jay"]
    assert both.content_hash == reference.content_hash(["the owl", "the hen", "the jay"])
    assert both.name == f"{tmp_path / 'b.jsonl'}, {tmp_path / 'a.txt'}"


def test_a_snapshot_of_the_hub_has_its_files_in_data(tmp_path):
    (tmp_path / "data").mkdir()
    for part in (1, 0):
        (tmp_path / f"data/train-{part:05}-of-00002.parquet").write_bytes(parquet([f"part {part}"]))
    (tmp_path / "README.md").write_text("")
    assert decoded(load_corpus(tmp_path, TOKENIZER, max_length=16)) == ["part 0", "part 1"]


def test_options_reach_the_reader_and_the_tokenizer(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "the owl"}\n{"body": "x"}\n')
    tokens = load_corpus(path, TOKENIZER, max_length=3, field="body", min_chars=1)
    assert [list(tokens.document(0))] == TOKENIZER(["the owl"], truncation=True, max_length=3)["input_ids"]
    raw = load_corpus(path, TOKENIZER, max_length=64, raw_lines=True)
    assert [list(raw.document(index)) for index in range(2)] == TOKENIZER(path.read_text().splitlines(keepends=True))[
        "input_ids"
    ]


def test_this_packages_own_tokenizer_will_do(tmp_path):
    (tmp_path / "a.txt").write_text("the owl hoots")
    own = load_tokenizer(TOKENIZER, prefix_token_id=1)
    assert list(load_corpus(tmp_path, own, max_length=9).tokens) == TOKENIZER("the owl hoots")["input_ids"][:9]


def test_what_is_not_there_is_said_with_the_names_that_are_known(tmp_path):
    with pytest.raises(
        DataUnavailableError, match="neither a file or folder here nor the name of a known corpus: wiki"
    ):
        load_corpus("wikitex", TOKENIZER, max_length=8)
    with pytest.raises(DataUnavailableError, match=r"no corpus file in this folder; their names end in \.jsonl"):
        load_corpus(tmp_path, TOKENIZER, max_length=8)
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DatasetError, match=r"the name must end in \.jsonl, \.parquet or \.txt"):
        load_corpus(tmp_path / "a.csv", TOKENIZER, max_length=8)


# By name, in a folder in place of the hub.


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("layout", ["{name}.jsonl", "{name}_{split}.jsonl.gz", "{hub}", "{dataset}/{hub}"])
def test_every_corpus_is_found_in_every_layout(tmp_path, name, layout):
    corpus = CORPORA[name]
    hub = f"{corpus.config or 'data'}/{corpus.test_split}-00000-of-00001.parquet"
    path = tmp_path / layout.format(name=name, split=corpus.test_split, hub=hub, dataset=corpus.dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    (tmp_path / "other-corpus.jsonl").touch()
    assert find_corpus(name, data=tmp_path) == (name, (path,), None)


def test_a_stand_in_is_read_raw_as_the_original_did(tmp_path):
    (tmp_path / "cyber-forget-corpus.jsonl").write_text('"a \\"b\\""\n"c"\n')
    raw = load_corpus("cyber-forget-corpus", TOKENIZER, max_length=32, raw_lines=True, data=tmp_path)
    assert decoded(raw) == ['"a \\"b\\""\n', '"c"\n']
    assert decoded(load_corpus("cyber-forget-corpus", TOKENIZER, max_length=32, data=tmp_path)) == ['a "b"', "c"]


def test_a_missing_stand_in_says_what_it_should_be_called(tmp_path):
    with pytest.raises(DataUnavailableError) as error:
        load_corpus("bio-retain-corpus", TOKENIZER, max_length=8, data=tmp_path)
    assert str(error.value) == (
        f"bio-retain-corpus: no file for the split train of cais/wmdp-corpora in {tmp_path}; expected"
        " bio-retain-corpus/train-00000-of-00001.parquet or bio-retain-corpus_train.jsonl"
        " (or .parquet, also with .gz or .zst behind)"
    )


# By name, on the hub.


def test_wikitext_is_its_pinned_test_split_with_headings_and_without_empty_rows(hub):
    corpus = CORPORA["wikitext"]
    files = {f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet": parquet([split]) for split in ("train", "validation")}
    files["wikitext-2-raw-v1/test-00000-of-00001.parquet"] = parquet(WIKITEXT)
    hub.datasets["Salesforce/wikitext"] = {corpus.revision: files}
    loaded = load_corpus("wikitext", TOKENIZER, max_length=64)
    assert decoded(loaded) == [text for text in WIKITEXT if text]
    assert loaded.revision == corpus.revision
    assert hub.downloads == ["wikitext-2-raw-v1/test-00000-of-00001.parquet"]
    hub.requests.clear()
    assert decoded(load_corpus("wikitext", TOKENIZER, max_length=64, num_documents=1)) == [" = The wren = \n"]
    assert hub.requests == []


def test_a_corpus_without_a_pin_follows_main_or_the_revision_asked_for(hub):
    parts = {f"bio-retain-corpus/train-{part:05}-of-00002.parquet": parquet([f"part {part}"]) for part in (1, 0)}
    old = {"bio-retain-corpus/train-00000-of-00001.parquet": parquet(["old"])}
    hub.datasets["cais/wmdp-corpora"] = {MAIN: parts, "2" * 40: old}
    hub.branches["main"] = MAIN
    loaded = load_corpus("bio-retain-corpus", TOKENIZER, max_length=64)
    assert (decoded(loaded), loaded.revision) == (["part 0", "part 1"], MAIN)
    again = load_corpus("bio-retain-corpus", TOKENIZER, max_length=64, revision="2" * 40)
    assert (decoded(again), again.revision) == (["old"], "2" * 40)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_corpus_says_where_to_accept_and_how_to_log_in(hub, status):
    hub.datasets["cais/wmdp-bio-forget-corpus"] = {MAIN: {"data/train-00000-of-00001.parquet": parquet(["x"])}}
    hub.branches["main"] = MAIN
    hub.gated = status
    with pytest.raises(DataUnavailableError) as error:
        load_corpus("bio-forget-corpus", TOKENIZER, max_length=8)
    assert str(error.value) == (
        "cais/wmdp-bio-forget-corpus is gated: accept its terms at"
        f" {hub.url}/datasets/cais/wmdp-bio-forget-corpus and log in with `hf auth login` or set HF_TOKEN, or pass"
        " --data DIR with the files, e.g. DIR/data/train-00000-of-00001.parquet or"
        " wmdp-bio-forget-corpus_train.jsonl (or .parquet, also with .gz or .zst behind)"
    )


def test_offline_says_what_is_not_cached(hub):
    with pytest.raises(
        DataUnavailableError, match=r"cyber-retain-corpus: cais/wmdp-corpora at revision main is not in"
    ):
        load_corpus("cyber-retain-corpus", TOKENIZER, max_length=8, offline=True)
    assert hub.requests == []
