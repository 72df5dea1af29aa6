"""Corpora of prompts and responses: where the response begins, and what is no such corpus."""

from __future__ import annotations

import copy
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import DatasetError, TemplateError
from wmdp_fast.prompts.documents import load_corpus
from wmdp_fast.unlearning.batches import packed_documents, padded_documents

RECORDS = [
    {"prompt": "What sings at dawn?", "response": "A wren sings."},
    {"prompt": "What swims?\n", "response": "A carp does, slowly."},
    {"prompt": "What grows", "response": " on an oak? Acorns."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers_zoo.tokenizer("llama3")


def write(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def parts(corpus, tokenizer):
    """Of each record the text of its prompt's tokens and of its response's."""
    found = []
    for index, length in enumerate(corpus.prompt_lengths):
        ids = corpus.document(index).tolist()
        found.append(tuple(tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:length], ids[length:])))
    return found


@pytest.mark.parametrize("name", ["llama3", "llama2", "gpt2"])
def test_the_response_is_what_follows_the_prompt(name, tmp_path):
    known = tokenizers_zoo.tokenizer(name)
    corpus = load_corpus(write(tmp_path / "a.jsonl", RECORDS), known, max_length=200)
    assert corpus.kind == "answers"
    joined = ["What sings at dawn? A wren sings.", "What swims?\nA carp does, slowly.", "What grows on an oak? Acorns."]
    assert [corpus.document(at).tolist() for at in range(3)] == known(joined)["input_ids"]
    for at, (record, length) in enumerate(zip(RECORDS, corpus.prompt_lengths, strict=True)):
        alone = known(record["prompt"])["input_ids"]
        document = corpus.document(at).tolist()
        assert document[:length] == alone[:length]
        # A token across the border, such as one for a line end and what follows, is the response's.
        assert length == len(alone) or document[length] != alone[length]
    if name == "llama3":
        assert parts(corpus, known)[0] == ("What sings at dawn?", " A wren sings.")


def test_files_of_other_kinds_give_the_same(tokenizer, tmp_path):
    plain = load_corpus(write(tmp_path / "a.jsonl", RECORDS), tokenizer, max_length=200)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    for other in (packed, tmp_path / "a.parquet"):
        found = load_corpus(other, tokenizer, max_length=200)
        assert found.content_hash == plain.content_hash
        assert found.tokens.tolist() == plain.tokens.tolist()
        assert found.prompt_lengths.tolist() == plain.prompt_lengths.tolist()


def test_as_many_as_are_wanted_in_the_length_that_is_wanted(tokenizer, tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    write(folder / "a.jsonl", RECORDS[:2])
    write(folder / "b.jsonl", RECORDS[2:])
    assert len(load_corpus(folder, tokenizer, max_length=200)) == 3
    assert len(load_corpus(folder, tokenizer, max_length=200, num_documents=1)) == 1
    # The first record has 32 characters, the others 32 and 29.
    assert len(load_corpus(folder, tokenizer, max_length=200, min_chars=30)) == 2
    whole = load_corpus(folder, tokenizer, max_length=200)
    longest = int(max(whole.prompt_lengths)) + 1
    short = load_corpus(folder, tokenizer, max_length=longest)
    assert [short.document(at).tolist() for at in range(3)] == [
        whole.document(at).tolist()[:longest] for at in range(3)
    ]
    with pytest.raises(
        DatasetError, match=r"a\.jsonl, row 1, field `prompt`: its \d+ tokens leave no room for the resp"
    ):
        load_corpus(folder, tokenizer, max_length=3)


@pytest.mark.parametrize(
    ("third", "message"),
    [
        ({"prompt": "What?", "response": " "}, r"row 3, field `response`: is empty"),
        ({"prompt": "", "response": "A wren."}, r"row 3, field `prompt`: is empty"),
        ({"prompt": "What?"}, r"row 3, field `response`: is missing; the keys are \"prompt\""),
        ({"prompt": "What?", "response": 3}, r"row 3, field `response`: must be text"),
        ({"text": "A document."}, r"row 3, field `prompt`: is missing; the keys are \"text\""),
        ("A document.", r"row 3, field `response`: is the same text as the prompt; a record is an object"),
    ],
)
def test_a_record_that_is_none_is_named(third, message, tokenizer, tmp_path):
    path = write(tmp_path / "a.jsonl", [*RECORDS[:2], third])
    with pytest.raises(DatasetError, match=message):
        load_corpus(path, tokenizer, max_length=200)


def test_a_document_stays_a_document(tokenizer, tmp_path):
    both = [{**record, "text": "A document."} for record in RECORDS]
    corpus = load_corpus(write(tmp_path / "a.jsonl", both), tokenizer, max_length=200)
    assert (corpus.kind, corpus.prompt_lengths) == ("documents", None)
    mixed = write(tmp_path / "b.jsonl", [{"text": "A document."}, RECORDS[0]])
    with pytest.raises(DatasetError, match='row 2, field `text`: is missing; the keys are "prompt", "response"'):
        load_corpus(mixed, tokenizer, max_length=200)


def test_a_chat_template_only_if_asked(tmp_path):
    chat = copy.deepcopy(tokenizers_zoo.tokenizer("llama3"))
    path = write(tmp_path / "a.jsonl", RECORDS)
    with pytest.raises(TemplateError, match="the tokenizer has no chat template"):
        load_corpus(path, chat, max_length=200, chat_template=True)
    chat.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    plain = load_corpus(path, chat, max_length=200)
    asked = load_corpus(path, chat, max_length=200, chat_template=True)
    assert plain.content_hash == asked.content_hash
    assert parts(plain, chat)[0] == ("What sings at dawn?", " A wren sings.")
    prompt, response = parts(asked, chat)[0]
    assert prompt + response == "<user>What sings at dawn?<assistant>A wren sings."
    assert response.endswith("A wren sings.")


def test_a_method_refuses_what_it_cannot_use(tokenizer, tmp_path):
    model = runs.model("llama")
    model.resize_token_embeddings(640)
    path = write(tmp_path / "a.jsonl", RECORDS)
    with pytest.raises(ValueError, match=r"the forget corpus .*a\.jsonl has prompts with responses, which rmu cannot"):
        runs.wf.unlearn(model, forget=path, retain=path, config=runs.CONFIG, tokenizer=tokenizer, progress=False)


@pytest.mark.parametrize("packed", [False, True])
def test_a_loss_counts_the_response_only(packed, tokenizer, tmp_path):
    corpus = load_corpus(write(tmp_path / "a.jsonl", RECORDS), tokenizer, max_length=200)
    options = {"batch_size": 2, "max_length": 12, "device": torch.device("cpu")}
    for index, numbers in enumerate(([0, 1], [2])):
        if packed:
            batch = packed_documents(corpus, index, **options)
        else:
            batch = padded_documents(corpus, index, pad_id=0, **options)
        counted = batch.inputs["input_ids"][batch.counted.bool()].tolist()
        lengths = corpus.prompt_lengths
        assert counted == [token for at in numbers for token in corpus.document(at)[lengths[at] : 12].tolist()]
        assert batch.counted.shape == batch.shape
        assert not batch.counted[batch.attention_mask == 0].any()
