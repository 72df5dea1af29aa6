"""Engines in environments of their own as baselines: what they are asked, and what is said if they cannot be.

Stand-ins of their names, which the benchmark's script finds on PYTHONPATH, answer with numbers that follow from the
tokens that they are given.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from wmdp_fast import Requests, cli
from wmdp_fast.bench import eval as bench
from wmdp_fast.bench.eval import bench_eval
from wmdp_fast.bench.peer_tokens import save_tokens
from wmdp_fast.bench.worker import Job, Outcome
from wmdp_fast.exceptions import WmdpFastError

# Two questions with letters, the first with a part of the second's context, and one whose choices are words.
CONTEXTS = [[1, 2, 3], [1, 2, 3, 4, 5], [6, 7]]
CHOICES = [[[10], [11]], [[10], [11]], [[12, 13], [14]]]

# What an engine says of a token: log-likelihood -(token + length of what is before it) / 100.
# Its engine is a process of its own, which holds 200 MB, and ends with it.
_VLLM = """
import subprocess, sys
from types import SimpleNamespace as Record
__version__ = "0.made-up"
class SamplingParams:
    def __init__(self, max_tokens, temperature, detokenize, logprob_token_ids=None, prompt_logprobs=None):
        assert max_tokens == 1 and not detokenize and (logprob_token_ids is None) != (prompt_logprobs is None)
        self.wanted = logprob_token_ids
def said(token, before):
    return {token: Record(logprob=-(token + before) / 100)}
class LLM:
    def __init__(self, model, dtype, enable_prefix_caching, enforce_eager):
        assert (model, dtype, enable_prefix_caching) == ("folder", "float32", True) and enforce_eager
        held = "held = b'x' * 200_000_000; print(flush=True); input()"
        self.process = subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()
    def __del__(self):
        self.process.kill()
        self.process.wait()
    def generate(self, prompts, parameters, use_tqdm):
        return [self.answer(one["prompt_token_ids"], how.wanted) for one, how in zip(prompts, parameters, strict=True)]
    def answer(self, prompt, wanted):
        letters = {key: value for token in wanted or [0] for key, value in said(token, len(prompt)).items()}
        own = [None, *(said(token, place) for place, token in enumerate(prompt) if place)]
        return Record(
            prompt_token_ids=prompt, num_cached_tokens=None if wanted is None else 1,
            outputs=[Record(logprobs=[letters])], prompt_logprobs=own,
        )
"""
_EVALUTION = """
from types import SimpleNamespace as Record
from evalution.engines import base
__version__ = "0.made-up"
class Module:
    def register_forward_pre_hook(self, hook, with_kwargs):
        self.hook = hook
class Transformers:
    batch_size, loglikelihood_prefix_cache_min_tokens = "auto", 256
    def __init__(self, dtype, device):
        assert (dtype, device) == ("float32", "cpu")
    def build(self, model):
        self.model = Module()
        return self
    def loglikelihood(self, requests):
        return [self.answer(one.context_input_ids, one.continuation_input_ids) for one in requests]
    def answer(self, context, continuation):
        self.model.hook(self.model, (), {"input_ids": Record(numel=lambda: len(context))})
        places = range(len(context), len(context) + len(continuation))
        return Record(logprob=sum(-(t + place) / 100 for t, place in zip(continuation, places, strict=True)))
def Model(path):
    assert path == "folder"
    return path
"""
_REQUEST = """
from dataclasses import dataclass
@dataclass
class LoglikelihoodRequest:
    context_input_ids: list
    continuation_input_ids: list
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A folder on PYTHONPATH with a stand-in for each engine."""
    vllm, evalution = tmp_path / "modules" / "vllm", tmp_path / "modules" / "evalution"
    for folder in (vllm, evalution / "engines"):
        folder.mkdir(parents=True)
    (vllm / "__init__.py").write_text(_VLLM, encoding="utf-8")
    (vllm / "platforms.py").write_text('class current_platform:\n    device_type = "cpu"\n', encoding="utf-8")
    (evalution / "__init__.py").write_text(_EVALUTION, encoding="utf-8")
    (evalution / "engines" / "__init__.py").write_text("", encoding="utf-8")
    (evalution / "engines" / "base.py").write_text(_REQUEST, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(vllm.parent), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return vllm.parent


@pytest.fixture
def ours(monkeypatch):
    """This package's worker without a model: it leaves the tokens, and scores as the stand-ins do. Gives the scores."""
    scores = np.array([-0.13, -0.14, -0.15, -0.16, -0.14 - 0.16, -0.16])
    notes = {
        "engine": "trie", "dtype": "float32", "device": "cpu", "threads": 1, "token_budget": 8, "warnings": [],
        "device_wait_seconds": 0.0, "useful_tokens": 5, "why_no_matrix_rate": "made up",
    }  # fmt: skip
    run = bench._run

    def contest(job: Job):
        if job.worker != "auto":
            return run(job)
        save_tokens(Requests.from_tokens(CONTEXTS, CHOICES, max_length=20), job.requests)
        seconds = {"start": 1.0, "load": 1.0, "forward": 2.0, "aggregate": 0.0, "total": 4.0}
        return Outcome(seconds, questions=3, tokens_run=5, peak_gb=1.0, notes=dict(notes)), scores

    monkeypatch.setattr(bench, "_run", contest)
    return scores


JOB = Job(model="folder", tasks="made_up")


@pytest.mark.usefixtures("stand_ins")
def test_engines_get_the_same_tokens_and_their_numbers_are_compared(ours, capsys):
    argv = ["bench", "eval", "folder", "--tasks", "made_up", "--against", "vllm,evalution", "--json"]
    assert cli.main([*argv, "--peer-python", f"vllm={sys.executable}"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["peers"]) == ["vllm", "evalution"]
    for name, peer in report["peers"].items():
        assert peer["notes"]["largest_difference"] < 1e-12
        assert peer["notes"]["version"] == "0.made-up"
        assert peer["units"]["questions"] == 3
        assert {"start", "load", "prepare", "forward", "exit", "total"} <= set(peer["seconds"])
        parts = {phase: seconds for phase, seconds in peer["seconds"].items() if phase != "total"}
        assert peer["seconds"]["total"] == pytest.approx(sum(parts.values()))
        assert peer["peak_gb"] > 0
        assert "given as tokens" in report["work"][f"prompts of {name}"]
        assert report["ratio"][name]["total"] == pytest.approx(peer["seconds"]["total"] / 4.0)
    assert report["peers"]["vllm"]["peak_gb"] > report["peers"]["evalution"]["peak_gb"] + 0.2
    # Two requests for letters, one token of each from the cache, and two for words.
    assert report["peers"]["vllm"]["notes"]["requests"] == 4
    assert report["peers"]["vllm"]["units"]["tokens_run"] == (3 - 1) + (5 - 1) + 4 + 3
    assert report["peers"]["evalution"]["units"]["tokens_run"] == 2 * (3 + 5 + 2)
    ours[4] -= 1e-3
    assert cli.main(argv) == 1
    assert "differs from vllm's by 0.001" in capsys.readouterr().err


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", ["vllm", "evalution"])
def test_what_is_not_installed_is_said_in_one_line(name, tmp_path, monkeypatch):
    # Whatever is installed here, the engine is not.
    blocker = f"import sys\nsys.modules[{name!r}] = None\n"
    (tmp_path / "sitecustomize.py").write_text(blocker, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    problem = rf"{name} is not installed for \S+: pip install {name}.*--peer-python {name}=PATH names"
    with pytest.raises(WmdpFastError, match=problem) as caught:
        bench_eval(JOB, [name])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("ours")
def test_what_an_engine_lacks_itself_is_not_taken_for_the_engine(stand_ins):
    (stand_ins / "vllm" / "__init__.py").write_text("import no_such_kernels\n", encoding="utf-8")
    with pytest.raises(WmdpFastError, match="No module named 'no_such_kernels'"):
        bench_eval(JOB, ["vllm"])


@pytest.mark.usefixtures("ours")
def test_an_engine_for_other_devices_is_refused(stand_ins):
    (stand_ins / "vllm" / "platforms.py").write_text(
        'class current_platform:\n    device_type = "cuda"\n', encoding="utf-8"
    )
    with pytest.raises(WmdpFastError, match=r"the vllm of \S+ runs on cuda, not on cpu"):
        bench_eval(JOB, ["vllm"])


@pytest.mark.parametrize(
    ("job", "against", "pythons", "problem"),
    [
        (Job(shape="tiny", workload="wmdp"), ["vllm"], [], "vllm reads a model's folder: give one in place of a shape"),
        (JOB, ["lm-eval"], [("vllm", sys.executable)], "it is for vllm and evalution, named in --against"),
        (JOB, ["vllm"], [("vllm", "/no/such/python")], "--peer-python vllm=/no/such/python: there is no such program"),
    ],
)
def test_what_engines_cannot_do_is_refused_before_anything_runs(job, against, pythons, problem):
    with pytest.raises(ValueError, match=problem):
        bench_eval(job, against, pythons=pythons)


def test_an_interpreter_without_a_name_is_wrong_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", "eval", "folder", "--tasks", "a", "--peer-python", "/opt/python"])
    assert "is not NAME=PATH" in capsys.readouterr().err


def test_prompts_that_engines_would_cut_are_refused(tmp_path):
    requests = Requests.from_tokens(CONTEXTS, CHOICES, max_length=6)
    with pytest.raises(ValueError, match="question 1 has 5 tokens and a choice of 1, and the model takes 6"):
        save_tokens(requests, tmp_path / "requests.npz")
