"""What models write, beside the attacks: tokens and statistics against plain twins, and what is missing."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

import wmdp_fast as wf
from tests.reference import generation as slow
from tests.support import robustness as support
from wmdp_fast import demo
from wmdp_fast.exceptions import ModelError
from wmdp_fast.robustness.attacked_model import AttackedModel
from wmdp_fast.robustness.retained.generation import generate
from wmdp_fast.robustness.retained.writing import Writing, prompts_of, text_statistics
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.robustness.subject import Subject

FORGET, NEAR = (demo.FOLDER / "data" / f"{kind}_corpus.jsonl" for kind in ("forget", "retain"))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The demo's model, which is its own base."""
    folder: Path = tmp_path_factory.mktemp("writing")
    load = LoadOptions(device="cpu", dtype="float32")
    model = AttackedModel(model=demo.model_path(), load=load, score=ScoreOptions())
    return support.subject(
        demo.model_path(),
        support.save_questions(folder / "birds.jsonl"),
        model=model.open(),
        sources={"forget": FORGET, "related": NEAR},
        original=model.open,
    )


def test_texts_are_those_of_one_prompt_after_the_other(subject: Subject) -> None:
    prompts = [*prompts_of(subject, "forget", 3), [5, 9, 3]]  # of several lengths
    model, ends = subject.model.loaded.model, {subject.model.tokenizer.eos_token_id}
    made = generate(subject.model, prompts, most=12)
    assert made == [slow.greedy(model, prompt, 12, ends) for prompt in prompts]
    assert len({*map(tuple, made)}) == len(made)
    sampled = [generate(subject.model, prompts, most=12, temperature=0.7, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(ModelError, match="leaves no room"):
        generate(subject.model, [[5] * subject.model.max_length], most=1)


def test_statistics_are_those_of_the_texts(subject: Subject, tmp_path: Path) -> None:
    found = Writing(4, 12, tmp_path / "texts").measure(subject)
    assert list(found) == ["forget", "near"]
    network, counts = subject.model.loaded.model, found["forget"]
    prompts = prompts_of(subject, "forget", 4)
    ends = {subject.model.tokenizer.eos_token_id}
    texts = [slow.greedy(network, prompt, 12, ends) for prompt in prompts]
    assert counts["tokens"] == list(map(len, texts))
    assert sum(counts["repeated_fours"]) / sum(counts["fours"]) == slow.repetition(texts, 4)
    pairs = [(text[place], text[place + 1]) for text in texts for place in range(len(text) - 1)]
    assert (counts["pairs"], counts["different_pairs"]) == (len(pairs), len(set(pairs)))
    with torch.no_grad():
        rows = network(torch.tensor([prompts[0] + texts[0]])).logits[0].double().log_softmax(dim=-1)
    nats = -sum(float(rows[len(prompts[0]) - 1 + place, token]) for place, token in enumerate(texts[0]))
    assert counts["base_nats"][0] == pytest.approx(nats, rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "texts" / "unlearned_forget.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [subject.model.tokenizer.decode(text) for text in texts]


def test_what_is_counted_of_a_text() -> None:
    refused = text_statistics([1, 2, 1, 2, 1, 2, 1, 2], "I\u2019m sorry, but I can't help.")
    assert (refused["fours"], refused["repeated_fours"], refused["refusal"], refused["not_ascii"]) == (5, 3, 1, 1)
    assert text_statistics([], "") | {"fours": 0} == {
        "tokens": 0,
        "fours": 0,
        "repeated_fours": 0,
        "characters": 0,
        "not_ascii": 0,
        "empty": 1,
        "refusal": 0,
    }
    assert text_statistics([7], "the canal is not able to hold it")["refusal"] == 0


def test_attacks_show_what_models_write_and_what_they_cannot(tmp_path: Path) -> None:
    given = {
        "tasks": demo.questions_path("forget"),
        "attacks": "ask",
        "eval_options": {"limit": 40},
        "device": "cpu",
        "dtype": "float32",
        "progress": False,
        "forget": FORGET,
    }
    result = wf.attack(demo.model_path(), base=demo.model_path(), write=3, write_tokens=8, output=tmp_path, **given)
    shown = {role: {one.title: one for one in result.kept(role)} for role in ("unlearned", "base")}
    mine = shown["unlearned"]["perplexity by the base, forget prompts"]
    assert mine.value is not None
    assert 1 < mine.value < math.inf
    assert mine.value == shown["base"]["perplexity by the base, forget prompts"].value
    assert mine.n == 3
    assert shown["unlearned"]["refusals, forget prompts"].value == 0
    assert shown["unlearned"]["repetition, near prompts"].why == "there is no related text: pass --related"
    assert {path.name for path in (tmp_path / "texts").iterdir()} == {
        f"{role}_{kind}.jsonl" for role in ("unlearned", "base") for kind in ("forget", "far")
    }
    text = json.loads((tmp_path / "texts" / "unlearned_forget.jsonl").read_text().splitlines()[0])["text"]
    assert text not in (tmp_path / "robustness.json").read_text()


def test_a_model_without_numbers_writes_nothing(tmp_path: Path) -> None:
    support.save_model(tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "broken")
    with torch.no_grad():
        model.lm_head.weight[0] = math.nan
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="logits are NaN"):
        generate(support.model_in(tmp_path / "broken").open(), [[1, 2, 3]], most=4)
