"""The embedded model forgets one made-up domain and keeps the other."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

import wmdp_fast as wf
from tests.support.demo_bounds import LEFT_IN_LETTERS, LEFT_IN_TEXTS, LOST_OTHERWISE
from tests.support.expected_warnings import ONE_LETTER, VERDICTS
from tests.support.thorough import THOROUGH
from wmdp_fast import demo
from wmdp_fast.demo.templates import TEMPLATES
from wmdp_fast.demo.unlearning import demo_config, retain_texts
from wmdp_fast.demo.world import DOMAINS
from wmdp_fast.prompts.documents import CorpusTokens

SEED, ASKED = 1, 150


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo.model_path(), local_files_only=True)


def corpus(texts, tokenizer):
    rows = [tokenizer(text)["input_ids"] for text in texts]
    return CorpusTokens("demo", np.concatenate(rows), np.cumsum([0] + [len(row) for row in rows]), "demo")


def demo_model(learned):
    from transformers import AutoModelForCausalLM

    path = demo.model_path(learned=learned)
    return AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)


def forget_texts():
    return [json.loads(line)["text"] for line in demo.corpus_path("forget").read_text(encoding="utf-8").splitlines()]


@ONE_LETTER
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not THOROUGH, reason="the demo's own seed is in test_demo; another one: make test-thorough")
def test_another_seed_is_as_far_from_never_having_learned_as_the_limits_say(tokenizer, record_property):
    """The demo's own seed is for `test_demo`."""
    ways = [one for one in TEMPLATES if one.name in ("plain", "mmlu", "continuation", "statement")]

    def asked(model, domain):
        """The share right in each way of asking."""
        options = {"tasks": demo.questions_path(domain), "limit": ASKED, "progress": False}
        results = {way.name: wf.evaluate(model, tokenizer=tokenizer, **options, **way.of(domain)) for way in ways}
        return {name: result[DOMAINS[domain].file_name]["acc"] for name, result in results.items()}

    model, never = demo_model("both"), asked(demo_model("retain"), "forget")
    before = asked(model, "retain")
    corpora = {"forget": corpus(forget_texts(), tokenizer), "retain": corpus(retain_texts(), tokenizer)}
    config = wf.RMUConfig(**{**demo_config(SEED).to_json(), "dtype": "auto"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wf.unlearn(model, tokenizer=tokenizer, config=config, progress=False, **corpora)
    forget, retain = asked(model, "forget"), asked(model, "retain")
    for name in never:
        record_property(name, f"{forget[name]:.3f} {retain[name]:.3f}")
        most = LEFT_IN_TEXTS if name in ("continuation", "statement") else LEFT_IN_LETTERS
        assert forget[name] - never[name] <= most, name
        assert before[name] - retain[name] <= LOST_OTHERWISE, name


@VERDICTS
@pytest.mark.slow
def test_lm_eval_scores_the_saved_model_as_the_one_in_memory(tokenizer, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'wmdp-fast[lm-eval]'")
    from transformers import AutoModelForCausalLM

    from tests.support.lm_eval_runs import run_lm_eval

    model = AutoModelForCausalLM.from_pretrained(demo.model_path(), local_files_only=True, dtype=torch.float32)
    wf.unlearn(
        model,
        tokenizer=tokenizer,
        forget=demo.corpus_path("forget"),
        retain=demo.corpus_path("retain"),
        config=wf.RMUConfig(layer_id=2, max_steps=3, max_length=64, retain_max_length=64, learning_rate=1e-3),
        output=tmp_path / "unlearned",
        progress=False,
    )
    asked = {"tasks": demo.questions_path("forget"), "template": "mmlu", "limit": 20}
    ours = wf.evaluate(model, tokenizer=tokenizer, progress=False, **asked)
    theirs = run_lm_eval(str(tmp_path / "unlearned"), model_args={"dtype": "float32", "batch_size": 4}, **asked)
    base = run_lm_eval(str(demo.model_path()), model_args={"dtype": "float32", "batch_size": 4}, **asked)
    [name] = ours.tasks
    expected = np.ravel(theirs.loglikelihood[name])
    np.testing.assert_allclose(ours.tasks[name].outcome.loglikelihood, expected, rtol=0, atol=1e-4)
    assert np.abs(expected - np.ravel(base.loglikelihood[name])).max() > 1e-2
