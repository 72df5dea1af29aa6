"""Tokens that a model has no embedding for, and tokenizers of other scripts, without a letter, or broken."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import wmdp_fast
from tests.support import tiny_models
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import ENDED_PROMPTS
from wmdp_fast._rust import Requests
from wmdp_fast.exceptions import ModelError, TokenizerError
from wmdp_fast.models.load import wrap_model
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.prompts.tokenizer import load_tokenizer
from wmdp_fast.scoring.trie import score
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.rmu.profile import profile_layers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Tokens past the embedding


def small_model(rows: int) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**tiny_models._SIZES, "vocab_size": rows})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("engine", ["auto", "trie", "padded"])
@pytest.mark.parametrize("place", ["question", "choice"])
def test_an_added_token_that_the_model_was_not_resized_for_is_named(tmp_path: Path, engine: Any, place: str) -> None:
    tokenizer = copy.deepcopy(tiny_models.tokenizer())  # which tests share
    model = small_model(len(tokenizer))
    tokenizer.add_tokens(["<new>"])
    rows = [{"question": "Which one?", "choices": ["a", "b", "c", "d"], "answer": 0} for _ in range(3)]
    if place == "question":
        rows[1]["question"] = "Which <new> one?"
    else:
        rows[1]["choices"] = ["a", "b", "c <new>", "d"]
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    ask: dict[str, Any] = {"tasks": path, "template": "{{question}}", "choices": "texts", "progress": False}
    with pytest.raises(ModelError, match=r"odd, question 2 has token 447 \('<new>'\), but .* for 0 to 446 only"):
        wmdp_fast.evaluate(model, tokenizer=tokenizer, engine=engine, **ask)
    model.resize_token_embeddings(len(tokenizer))
    wmdp_fast.evaluate(model, tokenizer=tokenizer, engine=engine, **ask)


def test_requests_of_any_caller_are_checked() -> None:
    loaded = wrap_model(small_model(100), tiny_models.tokenizer())
    requests = Requests.from_tokens([[1, 2], [3, 99], [4]], [[[5], [6]], [[7], [100, 8]], [[200]]], 64)
    assert requests.token_beyond(100) == (1, 100)
    assert requests.token_beyond(101) == (2, 200)
    assert requests.token_beyond(201) is None
    with pytest.raises(ModelError, match="question 2 has token 100"):
        score(loaded, requests)


def test_corpora_are_checked_by_unlearning_and_layers() -> None:
    rows = runs.documents(1)
    rows[4][2] = runs.VOCABULARY
    odd, good = runs.corpus(rows, "odd"), runs.corpus(runs.documents(2), "good")
    config = RMUConfig(layer_id=2, steering_coeff=2.0, batch_size=2, max_steps=2)
    message = (
        rf"odd, document 5 has token {runs.VOCABULARY}, but the model has embeddings for 0 to {runs.VOCABULARY - 1}"
    )
    for forget, retain in ((odd, good), (good, odd)):
        with pytest.raises(ModelError, match=message):
            wmdp_fast.unlearn(runs.model("llama"), forget=forget, retain=retain, config=config, progress=False)
    loaded = wrap_model(small_model(100), tiny_models.tokenizer())
    beyond = CorpusTokens("odd", np.array([1, 2, 3, 100, 5, 6]), np.array([0, 3, 6]), "hash")
    with pytest.raises(ModelError, match=r"odd, document 2 has token 100 \('"):
        profile_layers(loaded, beyond, beyond)


# Tokenizers


def fast(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def around(begin: str, end: str, first: int, last: int) -> Any:
    return processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=[(begin, first), (end, last)])


def of_characters(text: str) -> PreTrainedTokenizerFast:
    """BPE without merges over some characters; others are dropped."""
    vocabulary = {"<s>": 0, "</s>": 1, **{character: at + 2 for at, character in enumerate(text)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.post_processor = around("<s>", "</s>", 0, 1)
    return fast(backend, bos_token="<s>", eos_token="</s>")


def of_words(*words: str) -> PreTrainedTokenizerFast:
    """Whole words, and an error for any other."""
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, **{word: at + 2 for at, word in enumerate(words)}}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = around("<s>", "</s>", 0, 1)
    return fast(backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("tokenizer", "texts"),
    [
        (of_characters("абвгдежзийклмнопрстуфхцчшщъыьэюя ?."), ["какой цвет неба?", "синий", "зелёный лес."]),
        (of_characters("CGT N"), ["CGTT GCN", "TTT"]),
        (of_words("eins", "zwei", "drei"), ["eins zwei", "drei eins drei"]),
    ],
    ids=["cyrillic", "dna", "words"],
)
def test_a_tokenizer_without_the_letter_a_gives_its_own_tokens(
    tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    ours = load_tokenizer(tokenizer, prefix_token_id=0)
    for text in texts:
        theirs = tokenizer(text)["input_ids"]
        assert theirs[0] == 0
        assert theirs[-1] == 1
        assert ours.encode(text) == theirs


@ENDED_PROMPTS
def test_a_run_in_cyrillic_has_lm_evals_numbers(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'wmdp-fast[lm-eval]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer = of_characters("абвгдежзийклмнопрстуфхцчшщъыьэюя ?.")
    model = small_model(len(tokenizer))
    question, choices = "какой цвет неба?", ["синий", "зеленый", "белый", "черный"]
    path = tmp_path / "небо.jsonl"
    path.write_text(json.dumps({"question": question, "choices": choices, "answer": 0}))
    result = wmdp_fast.evaluate(
        model, tokenizer=tokenizer, tasks=path, template="{{question}}", choices="texts", progress=False
    )
    [task] = result.tasks.values()
    lm = HFLM(pretrained=model, tokenizer=tokenizer)
    asked = [Instance("loglikelihood", {}, (question, f" {choice}"), 0) for choice in choices]
    assert list(task.outcome.loglikelihood) == pytest.approx([one[0] for one in lm.loglikelihood(asked)], abs=1e-4)


def described(change: Callable[[dict[str, Any]], object]) -> str:
    content = json.loads(tiny_models.tokenizer().backend_tokenizer.to_str())
    change(content)
    return json.dumps(content)


TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
PAIR = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "charsmap"),
        (
            lambda t: t.update(
                post_processor={**TEMPLATE, "pair": PAIR, "single": [{"SpecialToken": {"id": "<q>", "type_id": 0}}]}
            ),
            "post-processor",
        ),
        (lambda t: t.update(post_processor={**TEMPLATE, "pair": PAIR, "single": PAIR[1:]}), "post-processor"),
        (lambda t: t.update(post_processor={**TEMPLATE, "single": []}), "post-processor"),
        (lambda t: t["model"].update(continuing_subword_prefix="####"), "range"),
        (lambda t: t["model"].update(dropout=0.5), "dropout"),
    ],
)
def test_a_tokenizer_that_its_library_fails_on_is_an_error_of_the_tokenizer(
    change: Callable[[dict[str, Any]], object], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from wmdp_fast._rust import Tokenizer as Ours

    with pytest.raises(TokenizerError, match=message):
        Ours(described(change), add_special_tokens=True, prefix_token_id=1, prefix_text="<s>")
    assert "panicked" not in capfd.readouterr().err
