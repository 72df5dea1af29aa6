"""The benchmark of scoring: workers agree, each figure is what it says, and other numbers make it fail."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.support import tiny_models
from tests.support.bench_workers import worker_in_process
from wmdp_fast import Requests, cli
from wmdp_fast._rust import Trie
from wmdp_fast.bench import eval as bench
from wmdp_fast.bench import shapes
from wmdp_fast.bench.arithmetic import arithmetic, linear_layers, matrix_rate, visible_pairs
from wmdp_fast.bench.eval import bench_eval
from wmdp_fast.bench.process import run_worker
from wmdp_fast.bench.report import peak_gb
from wmdp_fast.bench.worker import Job, Outcome
from wmdp_fast.exceptions import WmdpFastError

TINY = {"shape": "tiny", "workload": "mmlu-5shot", "limit": 1}


@pytest.mark.slow
def test_workers_agree_and_are_compared(tmp_path, capsys, monkeypatch):
    def run(module, job, folder):
        """Ours in a process of its own, as all of a user's are; the others where torch is imported already."""
        return (run_worker if job.worker == "auto" else worker_in_process)(module, job, folder)

    monkeypatch.setattr(bench, "run_worker", run)
    argv = ["bench", "eval", "--shape", "tiny", "--workload", "mmlu-5shot", "--limit", "2", "--token-budget", "512"]
    page = tmp_path / "results" / "report.md"
    assert cli.main([*argv, "--against", "lm-eval,padded", "--json", "--report", str(page)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["failures"] == []
    assert set(report["peers"]) == {"lm-eval", "padded"}
    for name, baseline in report["peers"].items():
        assert baseline["notes"]["largest_difference"] < 1e-5
        assert baseline["units"]["questions"] == report["ours"]["units"]["questions"] == 114
        assert {"start", "load", "forward", "total"} <= set(report["ratio"][name])
        assert report["ratio"][name]["forward"] == pytest.approx(
            baseline["seconds"]["forward"] / report["ours"]["seconds"]["forward"]
        )
        assert baseline["units"]["tokens_run"] >= report["ours"]["units"]["tokens_run"]
    assert 0.1 < report["ours"]["peak_gb"] < 10
    assert report["ours"]["notes"]["engine"] == "trie"
    assert report["ours"]["notes"]["tokens_run_per_useful"] < 1.05
    text = page.read_text(encoding="utf-8")
    assert all(part in text for part in ("| forward |", "ratio to lm-eval", "peak memory", "- torch: ", "- cpu: "))


@pytest.mark.slow
def test_real_questions_are_read_rendered_and_tokenized_by_both(smollm2_dir, mmlu_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "run_worker", worker_in_process)
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.from_pretrained(smollm2_dir, **small, **heads, dtype="float32")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(smollm2_dir).save_pretrained(tmp_path)
    job = Job(
        model=str(tmp_path),
        tasks="mmlu_virology",
        data=str(mmlu_dir),
        num_fewshot=1,
        limit=2,
    )
    report = bench_eval(job, against=["lm-eval"])
    assert report.failures == []
    assert {"read", "render", "tokenize", "prepare", "forward", "total"} <= set(report.ours.seconds)
    assert report.ratio["lm-eval"]["prepare"] > 0
    assert report.ours.seconds["prepare"] == pytest.approx(
        sum(report.ours.seconds[phase] for phase in ("read", "render", "tokenize"))
    )


@pytest.mark.slow
def test_lm_eval_is_run_with_each_batch_size_and_its_best_is_named(capsys, monkeypatch):
    monkeypatch.setattr(bench, "run_worker", worker_in_process)
    argv = ["bench", "eval", "--shape", "tiny", "--workload", "mmlu-0shot", "--limit", "1"]
    argv += ["--against", "lm-eval,padded"]
    assert cli.main([*argv, "--peer-batch-size", "1, 32,auto", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["peers"]) == ["lm-eval, 1", "lm-eval, 32", "lm-eval, auto", "padded"] == list(report["ratio"])
    theirs = {name: peer for name, peer in report["peers"].items() if name != "padded"}
    assert [peer["notes"]["batch_size"] for peer in theirs.values()] == [1, 32, "auto"]
    # Padding is run too, and so is what `auto` tries first.
    run = [peer["units"]["tokens_run"] for peer in theirs.values()]
    assert report["ours"]["units"]["useful_tokens"] <= run[0] < run[1] < run[2]
    best = min(theirs.values(), key=lambda peer: peer["seconds"]["total"])
    assert report["work"]["lm-eval's best batch size"].startswith(f"{best['notes']['batch_size']}, ")
    with pytest.raises(SystemExit, match="2"):
        cli.main([*argv, "--peer-batch-size", "16,some"])


def test_other_numbers_than_a_baselines_are_a_failure(monkeypatch, capsys):
    notes = {
        "engine": "trie", "dtype": "float32", "device": "cpu", "threads": 1, "token_budget": 8, "warnings": [],
        "device_wait_seconds": 0.0, "useful_tokens": 5, "why_no_matrix_rate": "made up",
    }  # fmt: skip

    def contest(job: Job):
        seconds = {"start": 1.0, "load": 1.0, "forward": 2.0, "aggregate": 0.0, "total": 4.0}
        scores = np.array([-1.0, -2.0]) if job.worker == "auto" else np.array([-1.0, -2.0 - 2e-4])
        return Outcome(seconds, questions=1, tokens_run=5, peak_gb=1.0, notes=dict(notes)), scores

    monkeypatch.setattr(bench, "_run", contest)
    assert cli.main(["bench", "eval", "--shape", "tiny", "--workload", "wmdp", "--against", "padded"]) == 1
    assert "FAILED: the log-likelihood of a choice differs from padded's by 0.0002" in capsys.readouterr().err
    notes["dtype"] = "bfloat16"
    assert cli.main(["bench", "eval", "--shape", "tiny", "--workload", "wmdp", "--against", "padded"]) == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "either a model's folder or a shape"),
        ({"shape": "tiny", "model": "m", "workload": "wmdp"}, "either a model's folder or a shape"),
        ({"shape": "tiny"}, "either tasks or a workload"),
        ({"shape": "giant", "workload": "wmdp"}, "no shape 'giant'; known: tiny"),
        ({"shape": "tiny", "workload": "gpqa"}, "no workload 'gpqa'; known: wmdp"),
        ({"shape": "tiny", "tasks": "wmdp"}, "a shape has no tokenizer"),
        ({"shape": "tiny", "workload": "wmdp", "dtype": "auto"}, "a shape has no dtype"),
        ({"shape": "tiny", "workload": "wmdp", "against": ["sglang"]}, "unknown baseline sglang"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, problem):
    job = Job(**{name: value for name, value in options.items() if name != "against"})
    with pytest.raises(ValueError, match=problem):
        bench_eval(job, options.get("against", ()))


def test_what_a_worker_says_last_is_in_the_error(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text('raise ImportError("this torch is for another machine")\n', encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    with pytest.raises(WmdpFastError, match=r"^auto failed with exit code 1: .*this torch is for another machine$"):
        bench_eval(Job(model="/no/such/model", workload="wmdp", limit=1))


def test_made_up_questions_have_the_sizes_of_the_benchmarks():
    wmdp = shapes.build_requests("wmdp", vocab_size=512, max_length=8192, limit=None)
    assert wmdp.num_questions == 3668
    groups, _ = shapes.WORKLOADS["mmlu-5shot"]
    assert sum(group.questions for group in groups) == 14042
    zero, five = (shapes.build_requests(f"mmlu-{n}shot", vocab_size=512, max_length=8192, limit=3) for n in (0, 5))
    assert zero.num_questions == five.num_questions == 57 * 3
    assert five.num_tokens > 4 * zero.num_tokens
    # Examples are shared by the questions of a subject.
    assert Trie(five).num_tokens < five.num_tokens / 2
    again = shapes.build_requests("mmlu-5shot", vocab_size=512, max_length=8192, limit=3)
    np.testing.assert_array_equal(again.context(100), five.context(100))


def test_operations_are_counted_as_torch_counts_them():
    from torch.utils.flop_counter import FlopCounterMode

    for family in ("llama", "gpt2"):
        model = tiny_models.build(family)
        cost = arithmetic(model)
        tokens = 20
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.ones(1, tokens, dtype=torch.long), logits_to_keep=1)
        counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
        products = sum(count for name, count in counts.items() if "attention" not in name and "bmm" not in name)
        assert products == cost.per_token * tokens + cost.per_readout
    assert matrix_rate(model, tokens=8, readouts=2) > 0


def test_a_model_with_experts_is_not_counted():
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model("mixtral", **sizes, intermediate_size=32, num_local_experts=2, num_key_value_heads=2)
    with pytest.raises(ValueError, match="which tokens it is multiplied with is not known"):
        linear_layers(AutoModelForCausalLM.from_config(config))


def test_a_token_sees_those_before_it_and_itself():
    requests = Requests.from_tokens([[1, 2, 3]], [[[4], [5, 6]]], max_length=100)
    batches = list(Trie(requests).batches(100, 100))
    assert visible_pairs(batches, None) == 1 + 2 + 3 + 4
    assert visible_pairs(batches, 2) == 1 + 2 + 2 + 2


def test_peak_memory_grows_by_what_is_used():
    before = peak_gb()
    used = np.ones(50_000_000, dtype=np.uint8)
    assert peak_gb() >= before
    assert used[-1] == 1
