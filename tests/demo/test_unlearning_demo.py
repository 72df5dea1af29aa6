"""The embedded model forgets one made-up domain and keeps the other."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

import wmdp_fast as wf
from wmdp_fast import demo
from wmdp_fast.demo.unlearning import demo_config, retain_texts
from wmdp_fast.demo.world import DOMAINS
from wmdp_fast.prompts.documents import CorpusTokens

CHANCE = 0.25
SEEDS = range(5)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo.model_path(), local_files_only=True)


def corpus(texts, tokenizer):
    rows = [tokenizer(text)["input_ids"] for text in texts]
    return CorpusTokens("demo", np.concatenate(rows), np.cumsum([0] + [len(row) for row in rows]), "demo")


def forget_texts():
    return [json.loads(line)["text"] for line in demo.corpus_path("forget").read_text(encoding="utf-8").splitlines()]


def accuracies(model, tokenizer):
    """Of both domains, 0-shot, in the words that the model was taught with."""
    shares = {}
    for domain in ("forget", "retain"):
        subject = DOMAINS[domain].subject
        result = wf.evaluate(
            model,
            tokenizer=tokenizer,
            tasks=demo.questions_path(domain),
            template="mmlu",
            description=f"The following are multiple choice questions (with answers) about {subject}.\n\n",
            progress=False,
        )
        [task] = result.tasks.values()
        shares[domain] = task.metrics["acc"]
    return shares


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_seeds_forget_one_domain_and_keep_the_other(tokenizer, record_property):
    from transformers import AutoModelForCausalLM

    def model():
        return AutoModelForCausalLM.from_pretrained(demo.model_path(), local_files_only=True, dtype=torch.float32)

    before = accuracies(model(), tokenizer)
    assert before["forget"] > 0.95
    assert before["retain"] > 0.95
    corpora = {"forget": corpus(forget_texts(), tokenizer), "retain": corpus(retain_texts(), tokenizer)}
    after = {"forget": [], "retain": []}
    for seed in SEEDS:
        unlearned = model()
        config = wf.RMUConfig(**{**demo_config(seed).to_json(), "dtype": "auto"})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wf.unlearn(unlearned, tokenizer=tokenizer, config=config, progress=False, **corpora)
        for domain, share in accuracies(unlearned, tokenizer).items():
            after[domain].append(share)
    for domain, shares in after.items():
        text = f"{before[domain]:.3f} -> {np.mean(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})"
        record_property(domain, text)
        print(domain, text)
    assert abs(np.mean(after["forget"]) - CHANCE) <= 0.05
    assert before["retain"] - np.mean(after["retain"]) <= 0.02


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
