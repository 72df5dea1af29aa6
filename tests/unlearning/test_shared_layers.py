"""LoRA factors of a model that several processes hold together: what one process trains, within rounding."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import wmdp_fast as wf
from tests.support import ranks, tokenizers_zoo
from tests.support import unlearning_runs as runs
from wmdp_fast import cli
from wmdp_fast.unlearning.lora import LoRA

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS: dict[str, Any] = {
    "lora": LoRA(r=4, targets=("q_proj", "mlp")),
    "save_adapter": True,
    "learning_rate": 1e-2,
    "warmup": 0.0,
    "batch_size": 3,
    "max_steps": 3,
    "max_length": 24,
    "retain_max_length": 24,
}

# Of 3 documents one process has one and the other two; of one, one process has none. Losses are means over documents,
# over tokens, over padding too, none of which is a mean of two processes' means.
CONFIGS: dict[str, tuple[str, wf.TrainingConfig]] = {
    "npo": ("llama", wf.NPOConfig(**SETTINGS, reduction="sum")),
    "one document": (
        "llama",
        wf.GradDiffConfig(
            **{**SETTINGS, "batch_size": 1},
            grad_accum=2,
            retain_loss="kl",
            gradient_checkpointing=True,
        ),
    ),
    "npo_sam": ("llama", wf.NPOSAMConfig(**SETTINGS, reduction="batch_mean_padded")),
    "scrub": ("gemma2", wf.SCRUBConfig(**SETTINGS)),
    "llmu": ("qwen3", wf.LLMUConfig(**SETTINGS)),
    # Whose choice of experts may tip.
    "experts": (
        "qwen3_moe",
        wf.SimNPOConfig(**{**SETTINGS, "lora": LoRA(r=4, targets=("self_attn",)), "learning_rate": 1e-3}),
    ),
    # Of the layers' outputs; the first step's targets have noise.
    "rr": ("llama", wf.RRConfig(**{**SETTINGS, "learning_rate": 1e-3}, target_layers=(1, 2))),
    "rr of one document": ("gemma2", wf.RRConfig(**{**SETTINGS, "batch_size": 1}, target_layers=(2,), grad_accum=2)),
    "elm": (
        "llama",
        wf.ELMConfig(
            **SETTINGS,
            update_layer_ids=None,
            expert_prefix="By one:",
            novice_prefix="By none:",
            eta=5.0,
            fluency_tokens=4,
        ),
    ),
}


# Which is exceeded on the way.
BUDGET = {"max_kl": 0.15, "kl_every": 1}

# After the second step the run ends.
CONDITION = "letters.token_perplexity<1000000000"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tokenizer = tokenizers_zoo.tokenizer("llama3")
    made = {}
    for family in {family for family, _ in CONFIGS.values()}:
        model = runs.model(family)
        # Where an adapter is put on, the embedding takes the tokenizer's size.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        made[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(made[family])
        tokenizer.save_pretrained(made[family])
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    every = {name: {"model": models[family], "config": config} for name, (family, config) in CONFIGS.items()}
    every["budget"] = {**every["npo"], **BUDGET}
    every["evaluated"] = {**every["npo"], **evaluations(folder)}
    # In two goes, as what takes minutes is stopped.
    for some in (list(every)[::2], list(every)[1::2]):
        assert ranks.unlearn(2, folder, {name: every[name] for name in some}) == [0, 0]
    return folder


def evaluations(folder: Path) -> dict[str, Any]:
    """What is measured on the way."""
    asked = ranks.questions_and_text(folder, 8, 3)
    options = {name: asked[name] for name in ("choices", "token_budget")}
    return {
        "eval_tasks": str(asked["tasks"]),
        "eval_text": asked["text"],
        "eval_every": 2,
        "eval_options": options,
        "stop_when": CONDITION,
        "keep_while": "birds.acc>=0",
    }


def numbers(metrics: list[dict[str, Any]]) -> np.ndarray:
    """What the steps of a run measured, without gradients and how long they took."""
    others = ("seconds", "tokens_per_second", "peak_memory_mb", "grad_norm")
    return np.array([[value for name, value in row.items() if name not in others] for row in metrics])


def factors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_close_factors(found: Path, expected: Path) -> None:
    """As near as rounding lets AdamW come, which makes whole steps of tiny gradients too."""
    ours, theirs = factors(found), factors(expected)
    assert ours.keys() == theirs.keys()
    difference = torch.cat([(ours[name] - tensor).flatten() for name, tensor in theirs.items()])
    # These were 0 in the beginning.
    trained = torch.cat([tensor.flatten() for name, tensor in theirs.items() if "lora_B" in name])
    assert difference.norm() < 0.01 * trained.norm()


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_train_what_one_does(name: str, models: dict[str, Path], shared: Path, tmp_path: Path) -> None:
    family, config = CONFIGS[name]
    expected = runs.unlearn(models[family], config, output=tmp_path / "one", device="cpu")
    found = [json.loads((shared / f"{name}.{rank}.json").read_text()) for rank in range(2)]
    np.testing.assert_array_equal(numbers(found[1]), numbers(found[0]))
    np.testing.assert_allclose(numbers(found[0]), numbers(expected.metrics), rtol=2e-4, atol=1e-5)
    # A gradient's norm is further off where rounding tips what Adam makes of tiny gradients: with padding instead of
    # without, one process is off by 3e-3 from itself (llmu).
    norms = [[row["grad_norm"] for row in one] for one in (found[0], expected.metrics)]
    np.testing.assert_allclose(*norms, rtol=5e-3)
    assert_close_factors(shared / name, tmp_path / "one")
    record, alone = (json.loads((of / "unlearn.json").read_text()) for of in (shared / name, tmp_path / "one"))
    assert record["parallel"] == {"kind": "fsdp", "processes": 2}
    assert {key for key in record if key != "parallel"} == alone.keys()


def test_how_far_a_run_may_go_is_measured_together(models: dict[str, Path], shared: Path, tmp_path: Path) -> None:
    family, config = CONFIGS["npo"]
    expected = runs.unlearn(models[family], config, output=tmp_path / "one", device="cpu", **BUDGET)
    record = json.loads((shared / "budget" / "unlearn.json").read_text())
    assert expected.stopped is not None
    assert 0 < expected.best_step < config.max_steps
    assert (record["best_step"], record["steps"]) == (expected.best_step, expected.steps)
    found, alone = ([one["kl"] for one in of["measured"]] for of in (record["budget"], expected.budget or {}))
    np.testing.assert_allclose(found, alone, rtol=1e-3)
    assert_close_factors(shared / "budget", tmp_path / "one")


def test_evaluations_on_the_way_are_those_of_one_process(models: dict[str, Path], shared: Path, tmp_path: Path) -> None:
    family, config = CONFIGS["npo"]
    runs.unlearn(models[family], config, output=tmp_path / "one", device="cpu", **evaluations(tmp_path))
    record, alone = (json.loads((of / "unlearn.json").read_text()) for of in (shared / "evaluated", tmp_path / "one"))
    assert record["stopped"] == alone["stopped"] == f"at step 2 {CONDITION}"
    steps = [[one["step"] for one in of["evaluations"]] for of in (record, alone)]
    assert steps == [[0, 2], [0, 2]]
    for found, expected in zip(record["evaluations"], alone["evaluations"], strict=True):
        assert found["questions"] == expected["questions"]
        for name, scores in expected["scores"].items():
            for metric, value in scores.items():
                np.testing.assert_allclose(found["scores"][name][metric], value, rtol=1e-3)
    # What each question was given.
    for step in (0, 2):
        ours, theirs = (
            wf.read_results(of / "evaluations" / f"step-{step}")["birds"].loglikelihood_matrix()
            for of in (shared / "evaluated", tmp_path / "one")
        )
        np.testing.assert_allclose(ours, theirs, rtol=2e-3 if step else 2e-5)
    assert_close_factors(shared / "evaluated", tmp_path / "one")


def test_three_processes_of_which_two_have_nothing_of_a_batch(
    models: dict[str, Path], shared: Path, tmp_path: Path
) -> None:
    family, config = CONFIGS["one document"]
    assert ranks.unlearn(3, tmp_path, {"three": {"model": models[family], "config": config}}) == [0, 0, 0]
    assert_close_factors(tmp_path / "three", shared / "one document")


def responses(folder: Path, adapter: Path, questions: Path) -> np.ndarray:
    scored = wf.evaluate(folder, tasks=questions, peft=adapter, device="cpu", progress=False)
    return np.concatenate([task.outcome.loglikelihood for task in scored.tasks.values()])


def test_the_adapter_scores_alike_in_one_process(models: dict[str, Path], shared: Path, tmp_path: Path) -> None:
    family, config = CONFIGS["npo"]
    runs.unlearn(models[family], config, output=tmp_path / "one", device="cpu")
    questions = ranks.questions_and_text(tmp_path, 8, 1)["tasks"]
    found, expected = (responses(models[family], of, questions) for of in (shared / "npo", tmp_path / "one"))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    base = wf.evaluate(models[family], tasks=questions, device="cpu", progress=False)
    assert np.abs(base["birds"].outcome.loglikelihood - found).max() > 0.01


def test_a_process_that_fails_ends_the_run_which_goes_on_from_its_state(
    models: dict[str, Path], tmp_path: Path
) -> None:
    config = wf.NPOConfig(**SETTINGS, save_every=1)
    given: dict[str, Any] = {"model": models["llama"], "config": config}
    assert ranks.unlearn(2, tmp_path / "whole", {"run": given}) == [0, 0]
    assert ranks.unlearn(2, tmp_path, {"run": given}, fails=2, stop_others=False) == [1, 1]
    assert (tmp_path / "run.1.error").read_text() == "RuntimeError: a fault that was made up"
    assert (tmp_path / "run.0.error").read_text() == "ModelError: another rank has ended, so this one does too"
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "run.unlearning").is_dir()
    # One process may go on with it too.
    shutil.copytree(tmp_path / "run.unlearning", tmp_path / "alone.unlearning")
    assert ranks.unlearn(2, tmp_path, {"run": {**given, "resume": True}}) == [0, 0]
    for name, tensor in factors(tmp_path / "whole" / "run").items():
        assert torch.equal(factors(tmp_path / "run")[name], tensor)
    runs.unlearn(**given, output=tmp_path / "alone", device="cpu", resume=True)
    assert_close_factors(tmp_path / "alone", tmp_path / "run")


def written(folder: Path) -> list[str]:
    """Arguments that name corpora of a few documents."""
    for name in ("forget", "retain"):
        rows = [{"text": f"The {name} wren number {i} sings in the oak at dawn."} for i in range(8)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--forget", str(folder / "forget.jsonl"), "--retain", str(folder / "retain.jsonl")]


def test_devices_starts_the_processes_of_which_the_first_one_speaks(
    models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():
        # What the command sets for its processes is put back after the test.
        monkeypatch.setenv(name, value)
    argv = ["unlearn", str(models["llama"]), "--method", "npo", *written(tmp_path), "--max-steps", "2"]
    argv += ["--lora", "r=4", "--save-adapter", "--devices", "cpu:2", "--parallel", "fsdp"]
    assert cli.main([*argv, "--output", str(tmp_path / "out")]) == 0
    printed = capfd.readouterr()
    assert printed.out.count("2 steps in") == 1
    assert printed.err.count("training LoRA factors") == 1
    assert printed.err.count("unlearning: 100%") == 1
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out.unlearning").exists()
    # Each of them would refuse it, and one of them is asked first.
    assert cli.main([*argv, "--output", str(tmp_path / "out")]) == 1
    assert "out" in capfd.readouterr().err


def test_what_processes_cannot_share_is_refused(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, npo = CONFIGS["npo"]

    def refused(says: str, config: wf.TrainingConfig = npo, model: Any = models["llama"], **given: Any) -> None:
        with pytest.raises(ValueError, match=says):
            runs.unlearn(model, config, **{"parallel": "fsdp", **given})

    refused("needs a process for each device")
    refused("must be fsdp, not 'tp'", parallel="tp")
    refused("rmu does not: it loads a few layers only", wf.RMUConfig(layer_id=2))
    refused("ssd does not: run it on one device", wf.SSDConfig())
    refused("it needs lora and save_adapter", wf.NPOConfig())
    refused("needs save_adapter", wf.NPOConfig(lora=SETTINGS["lora"]))
    refused("by its folder or name", model=runs.model("llama"))
    (tmp_path / "delta.safetensors").touch()
    refused("by its folder or name", model=f"{models['llama']}+{tmp_path / 'delta.safetensors'}")
    refused("parallel and cache_trunk exclude each other", cache_trunk=models["llama"] / "cache")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    refused("device cuda:1 is a single one", device="cuda:1")
    monkeypatch.delenv("RANK")
    argv = ["unlearn", "m", "--forget", "f", "--retain", "r", "--output", "o", "--devices", "cpu:2"]
    for more, says in {("--device", "cpu"): "exclude each other", (): "needs --parallel fsdp"}.items():
        with pytest.raises(SystemExit):
            cli.main([*argv, *more])
        assert says in capsys.readouterr().err
