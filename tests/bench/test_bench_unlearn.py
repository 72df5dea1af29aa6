"""The benchmark of unlearning: workers compute the same, arithmetic is counted rightly, else it fails."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.reference import rmu as reference
from tests.support import tiny_models
from tests.support.bench_workers import worker_in_process
from tests.support.expected_warnings import VERDICTS
from wmdp_fast import cli
from wmdp_fast.bench import unlearn as bench
from wmdp_fast.bench.process import run_worker
from wmdp_fast.bench.rmu_baseline import PlainRMU
from wmdp_fast.bench.rmu_worker import Job, Outcome
from wmdp_fast.bench.shapes import SHAPES
from wmdp_fast.bench.unlearn import bench_unlearn, flops_of

TINY = Job(shape="tiny", layer_id=1, batch_size=2, length=16, steps=2, dtype="float32", device="cpu")


@VERDICTS
@pytest.mark.slow
def test_workers_compute_the_same_and_are_compared(tmp_path, capsys, monkeypatch):
    def run(module, job, folder):
        """One in a process of its own, as all of a user's are; the others where torch is imported already."""
        return (run_worker if job.worker == "plain" else worker_in_process)(module, job, folder)

    monkeypatch.setattr(bench, "run_worker", run)
    page = tmp_path / "report.md"
    argv = ["bench", "unlearn", "--shape", "tiny", "--layer-id", "0", "--length", "16", "--steps", "2"]
    argv += ["--dtype", "float32", "--device", "cpu", "--against", "plain,truncated", "--json", "--report", str(page)]
    assert cli.main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["failures"] == []
    assert set(report["peers"]) == {"plain", "truncated"}
    for name, baseline in report["peers"].items():
        assert baseline["notes"]["forget_losses"] == report["ours"]["notes"]["forget_losses"]
        assert baseline["notes"]["retain_losses"] == report["ours"]["notes"]["retain_losses"]
        assert report["work"][f"losses against {name}"] == "the same to the last bit"
        assert report["ratio"][name]["step"] == baseline["seconds"]["step"] / report["ours"]["seconds"]["step"]
        assert len(baseline["notes"]["step_seconds"]) == 2
    assert 0.01 < report["peers"]["plain"]["peak_gb"] < 3
    assert len(report["ours"]["notes"]["forget_losses"]) == 3
    assert report["ours"]["notes"]["retain_losses"][0] == 0.0
    text = page.read_text(encoding="utf-8")
    assert all(
        part in text for part in ("# bench unlearn", "| step |", "ratio to truncated", "peak memory", "- torch: ")
    )


def test_the_baseline_is_the_original_algorithm(tmp_path):
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path)
    tokens = torch.randint(8, 600, (2, 6, 12), generator=torch.Generator().manual_seed(0))
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]
    settings = {"layer_id": 1, "lr": 1e-3, "batch_size": 2, "max_steps": 3, "pad_id": 0, "seed": 42}
    record = reference.rmu(
        tmp_path,
        [tokens[0].tolist()],
        [tokens[1].tolist()],
        update=names,
        steering_coeffs=[6.5],
        alphas=[100.0],
        forget_max_lengths=[12],
        retain_max_length=12,
        **settings,
    )
    baseline = PlainRMU(
        copy.deepcopy(model),
        model,
        layer_id=1,
        update_layer_ids=[0, 1],
        parameters="mlp.down_proj",
        learning_rate=1e-3,
    )
    losses = [
        baseline.step(forget, retain, record.control_vectors[0], 100.0)
        for forget, retain in zip(tokens[0].split(2), tokens[1].split(2), strict=True)
    ]
    assert losses == list(zip(record.forget_losses, record.retain_losses, strict=True))
    theirs = record.model.state_dict()
    assert all(torch.equal(weights, theirs[name]) for name, weights in baseline.updated.state_dict().items())


@pytest.mark.parametrize("parameters", ["mlp.down_proj", "self_attn.o_proj"])
def test_arithmetic_is_counted_as_torch_counts_it(parameters):
    """Of the plain algorithm, whose every product torch sees. Torch counts attention in full, not its causal half."""
    from transformers import AutoModelForCausalLM

    from wmdp_fast.bench.rmu_worker import config_of

    config = config_of(TINY)
    models = [AutoModelForCausalLM.from_config(config, attn_implementation="eager") for _ in range(2)]
    baseline = PlainRMU(*models, layer_id=1, update_layer_ids=[0, 1], parameters=parameters, learning_rate=1e-3)
    tokens = torch.randint(8, 500, (2, 2, 16))
    with FlopCounterMode(display=False) as counter:
        baseline.step(tokens[0], tokens[1], torch.zeros(1, 1, config.hidden_size), 1.0)
    pairs = TINY.batch_size * TINY.length
    # For each pair and layer: three forward and two backward passes of twice the cost; one causal half each is missing.
    causal = pairs * config.num_hidden_layers * (3 + 2 * 2) * 2 * TINY.length * config.hidden_size
    # The first layer's input is an embedding, which needs a gradient too: nothing is left out there.
    assert counter.get_total_flops() == flops_of(replace(TINY, parameters=parameters)).plain + causal


def test_the_formulas_are_those_published_for_zephyr():
    """TFLOP of a step of 4 x 512 forget and retain tokens, worked out by hand."""
    zephyr = replace(TINY, shape="mistral-7b", layer_id=7, update_layer_ids=[5, 6, 7], batch_size=4, length=512)
    flops = flops_of(zephyr)
    assert flops.plain / 1e12 == pytest.approx(117.1, abs=0.1)
    assert flops.truncated / 1e12 == pytest.approx(50.5, abs=0.1)
    # 22.2 with the whole of the first trained layer in the frozen branch, of which only one product is needed.
    shared = 4 * 512 * (2 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 4096 * 14336 * 2) + 2 * 512 * 4096)
    assert (flops.ours + shared) / 1e12 == pytest.approx(22.2, abs=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_worker_computes_less_than_the_one_before(shape):
    flops = flops_of(replace(TINY, shape=shape))
    assert flops.ours < flops.truncated < flops.plain


def test_of_a_mixture_only_the_experts_that_a_token_goes_to_count(tmp_path):
    from transformers import AutoConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("mixtral", **sizes, num_key_value_heads=2, vocab_size=64, num_local_experts=8)
    config.save_pretrained(tmp_path)
    one, two = (flops_of(replace(TINY, shape=None, model=str(tmp_path))) for _ in range(2))
    config.num_experts_per_tok = 4
    config.save_pretrained(tmp_path)
    four = flops_of(replace(TINY, shape=None, model=str(tmp_path)))
    assert one == two
    # Two more experts of three matrices, in three forward passes and two backward passes of two products.
    assert four.truncated - one.truncated == 32 * 2 * (3 + 2 * 2) * 2 * (2 * 3 * 32 * 48)


def test_wrong_arguments_are_refused():
    for wrong, message in (
        ({}, "give either"),
        ({"shape": "tiny", "model": "x"}, "give either"),
        ({"shape": "huge"}, "there is no shape 'huge'; known: tiny"),
        ({"shape": "tiny", "dtype": "auto"}, "no dtype of its own"),
        ({"shape": "tiny", "against": ["fast"]}, "unknown baseline fast; known: plain, truncated"),
        ({"shape": "tiny"}, "layer 7 does not exist: the model has 2 layers"),
    ):
        job = Job(**{name: value for name, value in wrong.items() if name != "against"})
        with pytest.raises(ValueError, match=message):
            bench_unlearn(job, wrong.get("against", ()))


def test_other_losses_are_a_failure(monkeypatch):
    """Workers stand in here for real ones: one of them is made to compute something else."""

    def run(job: Job) -> Outcome:
        retain = [0.0, 0.5] if job.worker == "wmdp-fast" else [0.0, 0.5001]
        forget = [1.0, 0.9] if job.worker != "truncated" else [1.1, 0.9]
        return Outcome(1.0, [2.0, 3.0, 4.0], forget, retain, 0.5, None, 1e9, "cpu", 1)

    monkeypatch.setattr(bench, "_run", run)
    report = bench_unlearn(Job(shape="tiny", layer_id=1), against=["plain", "truncated"])
    assert report.work["losses against plain"] == "differ by 0.0002"
    [failure] = report.failures
    assert failure.startswith("the first losses differ from truncated's by 0.091")
    assert report.ours.seconds == {"load": 1.0, "step": 3.0}
    assert asdict(report)["ratio"] == {"plain": {"load": 1.0, "step": 1.0}, "truncated": {"load": 1.0, "step": 1.0}}
