"""The settings of unlearning, what is picked, and everything around the loop."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wmdp_fast as wf
from tests.reference import rmu as plain
from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import ONE_LETTER, WIDER_TYPE, printed
from wmdp_fast import cli, demo
from wmdp_fast.exceptions import ModelError, TaskError, WmdpFastWarning
from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.unlearning import reporting
from wmdp_fast.unlearning.batches import packed_documents, padded_documents
from wmdp_fast.unlearning.card import wilson_interval
from wmdp_fast.unlearning.evaluation_loop import EvaluationLoop
from wmdp_fast.unlearning.optim import AdamW
from wmdp_fast.unlearning.parameters import select_parameters
from wmdp_fast.unlearning.rmu.branches import Branches
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.rmu.step import Step
from wmdp_fast.unlearning.stopping import Condition

pytestmark = ONE_LETTER

CONFIG = RMUConfig(
    layer_id=2, steering_coeff=2.0, alpha=50.0, learning_rate=1e-3, batch_size=2, max_steps=6, max_length=30
)


def run(model, config=CONFIG, **options):
    return runs.unlearn(model, config, **options)


# Settings


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"layer_id": -1}, "layer_id must be a whole number"),
        ({"layer_id": 3, "update_layer_ids": (2, 4)}, "lies above layer_id 3"),
        ({"update_layer_ids": ()}, "nothing would be trained"),
        ({"steering_coeff": "often"}, "auto:FACTOR"),
        ({"steering_coeff": "auto:"}, None),
        ({"steering_coeff": "auto:-2"}, "auto:FACTOR"),
        ({"steering_coeff": (6.5, 0)}, "above 0"),
        ({"alpha": -1.0}, "alpha must be a number of at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number above 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"max_length": (512, 0)}, "max_length"),
        ({"mode": "both"}, "reference or masked"),
        ({"dtype": "int8"}, "float32"),
        ({"parameters": ""}, "mlp.down_proj"),
        ({"grad_clip": 0}, "grad_clip"),
    ],
)
def test_impossible_settings_say_what_to_do(wrong, says):
    if says is None:
        assert RMUConfig(**wrong).topics(1)[0].auto_factor == 5.0
        return
    with pytest.raises(ValueError, match=says):
        RMUConfig(**wrong)


def test_settings_per_topic():
    config = RMUConfig(steering_coeff=[6.5, "auto:3"], alpha=100, max_length=(512, 768))
    first, second = config.topics(2)
    assert (first.steering_coeff, first.alpha, first.max_length) == (6.5, 100.0, 512)
    assert (second.steering_coeff, second.auto_factor, second.max_length) == (None, 3.0, 768)
    with pytest.raises(ValueError, match="2 values for 3 forget corpora"):
        config.topics(3)
    assert RMUConfig(layer_id=7).updated_layers == (5, 6, 7)
    assert RMUConfig(layer_id=1).updated_layers == (0, 1)


# What is picked

DOWN = {
    "gpt_neox": "mlp.dense_4h_to_h.weight",
    "mixtral": "mlp.experts.down_proj",
    "qwen3_moe": "mlp.experts.down_proj",
}
OUTPUT = {"gpt_neox": "attention.dense.weight"}


@pytest.mark.parametrize("family", runs.FAMILIES)
def test_roles_in_every_architecture(family):
    decoder = decoder_of(runs.model(family))

    def names(role):
        return [one.name for one in select_parameters(decoder.layers, decoder.prefix, (1, 2), role)]

    down, output = DOWN.get(family, "mlp.down_proj.weight"), OUTPUT.get(family, "self_attn.o_proj.weight")
    assert names("mlp.down_proj") == [f"layers.1.{down}", f"layers.2.{down}"]
    assert names("self_attn.o_proj") == [f"layers.1.{output}", f"layers.2.{output}"]
    whole = names("mlp")
    assert set(names("mlp.down_proj")) < set(whole)
    # Everything that multiplies in the feed-forward network, but not what chooses experts, nor biases and norms.
    expected = [
        f"layers.1.{name}"
        for name, parameter in decoder.layers[1].named_parameters()
        if name.startswith("mlp") and parameter.dim() > 1 and name != "mlp.gate.weight"
    ]
    assert whole[: len(expected)] == expected


def test_listed_experts_are_picked_too():
    layer = torch.nn.Module()
    layer.block_sparse_moe = torch.nn.Module()
    layer.block_sparse_moe.gate = torch.nn.Linear(4, 2, bias=False)
    layer.block_sparse_moe.experts = torch.nn.ModuleList(
        torch.nn.ModuleDict({name: torch.nn.Linear(4, 4, bias=False) for name in ("w1", "w2", "w3")}) for _ in range(2)
    )
    picked = select_parameters(torch.nn.ModuleList([layer]), "layers", [0], "mlp.down_proj")
    assert [one.name for one in picked] == [f"layers.0.block_sparse_moe.experts.{i}.w2.weight" for i in (0, 1)]
    assert len(select_parameters(torch.nn.ModuleList([layer]), "layers", [0], "mlp")) == 6


def test_regular_expressions_and_empty_picks():
    decoder = decoder_of(runs.model("llama"))
    picked = select_parameters(decoder.layers, "layers", [1], r"(q|k)_proj")
    assert [one.name for one in picked] == ["layers.1.self_attn.q_proj.weight", "layers.1.self_attn.k_proj.weight"]
    assert str(picked[0]) == "layers.1.self_attn.q_proj.weight: 32 x 32, float32, 0.0 MB"
    with pytest.raises(ModelError, match=r"fits no parameter of layer 1.*self_attn\.q_proj\.weight"):
        select_parameters(decoder.layers, "layers", [1], "down_projection")
    with pytest.raises(ValueError, match="neither a role"):
        select_parameters(decoder.layers, "layers", [1], "down(")
    with pytest.raises(ValueError, match="has 4 layers, 0 to 3"):
        select_parameters(decoder.layers, "layers", [4], "mlp")


# The loss and the optimizer


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    retain_lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    alpha=st.floats(0, 100),
    seed=st.integers(0, 1000),
    family=st.sampled_from(["llama", "mistral", "gemma2"]),  # short windows, soft caps
    packed=st.booleans(),
)
def test_masked_losses_are_those_of_a_loop_over_real_tokens(lengths, retain_lengths, alpha, seed, family, packed):
    model = MODELS.setdefault(family, runs.model(family))
    decoder = decoder_of(model)
    trained = {
        one.name: one.parameter for one in select_parameters(decoder.layers, decoder.prefix, (0, 1), "mlp.down_proj")
    }
    branches = Branches(decoder, 1, trained)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # as if it had been trained already, so that the retain loss is not 0
        for parameter in trained.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    rng = np.random.default_rng(seed)
    cut = {"batch_size": 4, "max_length": 8, "device": torch.device("cpu")}
    corpora = [runs.corpus([rng.integers(3, 99, n).tolist() for n in sizes]) for sizes in (lengths, retain_lengths)]
    pair = [padded_documents(corpus, 0, pad_id=runs.PAD, **cut) for corpus in corpora]
    control = torch.rand(1, 1, 32, generator=generator)
    step = Step(branches, trained, masked=True)
    ran = [packed_documents(corpus, 0, **cut) for corpus in corpora] if packed else pair
    gradients, measured = step.losses_and_gradients([tuple(ran)], control, alpha)
    hidden = []
    for batch in pair:
        handle = decoder.layers[1].register_forward_hook(lambda _m, _i, out: hidden.append(out))
        model(**batch.inputs)
        handle.remove()
    with branches.original_parameters():
        handle = decoder.layers[1].register_forward_hook(lambda _m, _i, out: hidden.append(out))
        model(**pair[1].inputs)
        handle.remove()
    steered, kept, original = hidden
    forget_loss, retain_loss = plain.masked_losses(
        steered, control, kept, original, pair[0].attention_mask, pair[1].attention_mask, alpha
    )
    assert float(measured[2]) == pytest.approx(forget_loss, rel=1e-4)
    assert float(measured[3]) == pytest.approx(retain_loss, rel=1e-3, abs=1e-4)
    # The gradient is that of these losses, too.
    real_f, real_r = pair[0].attention_mask.bool(), pair[1].attention_mask.bool()
    loss = ((steered - control)[real_f] ** 2).mean() + alpha * ((kept - original.detach())[real_r] ** 2).mean()
    for name, expected in zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True):
        torch.testing.assert_close(gradients[name], expected, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(branches.originals[name])


MODELS = {}


def test_epsilon_is_added_before_the_bias_is_corrected():
    gradient = torch.tensor([1e-5, -2e-7])
    weights, other = torch.zeros(2), torch.nn.Parameter(torch.zeros(2))
    AdamW({"w": weights}, 1e-3).step({"w": gradient})
    # By hand for the first step: m = 0.1 g, v = 0.001 g^2.
    expected = -1e-3 * (0.001**0.5 / 0.1) * 0.1 * gradient / ((0.001 * gradient**2).sqrt() + 1e-6)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=0)
    other.grad = gradient
    torch.optim.AdamW([other], lr=1e-3, weight_decay=0.0).step()
    assert weights.abs()[1] < 0.01 * other.detach().abs()[1]  # torch's takes a whole step where this one waits


def test_master_weights_keep_what_bfloat16_would_lose():
    weights = {kind: torch.ones(4, dtype=torch.bfloat16) for kind in ("plain", "master")}
    for kind, tensor in weights.items():
        optimizer = AdamW({"w": tensor}, 1e-4, master_weights=kind == "master")
        for _ in range(100):
            optimizer.step({"w": torch.full((4,), 1e-2, dtype=torch.bfloat16)})
    assert torch.equal(weights["plain"], torch.ones(4, dtype=torch.bfloat16))
    assert (weights["master"] < 0.995).all()


# A run


def test_a_model_in_memory_is_updated_in_place_and_left_as_it_was_otherwise():
    model = runs.model("llama").train()
    model.model.layers[0].requires_grad_(False)
    model.model.layers[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(p.requires_grad, p.grad) for p in model.parameters()], [m.training for m in model.modules()]
    result = run(model)
    assert result.model is model
    assert ([(p.requires_grad, p.grad) for p in model.parameters()], [m.training for m in model.modules()]) == flags
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1, 2)}
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]
    base = model.model
    assert all(torch.equal(base.get_parameter(name), tensor) for name, tensor in result.tensors.items())


def test_a_model_in_memory_gets_its_weights_back_if_the_run_fails():
    model = runs.model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    class Tracker:
        def log(self, _values, step):
            if step == 3:
                raise RuntimeError("full")

        def close(self):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "open_trackers", lambda *_args: [Tracker()])
        with pytest.raises(RuntimeError, match="full"):
            run(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_in_memory_and_from_disk_are_the_same(tmp_path):
    folder = runs.saved_model(tmp_path, "llama")
    partial, whole = run(folder), run(runs.model("llama"))
    assert [row["forget_loss"] for row in partial.metrics] == [row["forget_loss"] for row in whole.metrics]
    for name, tensor in whole.tensors.items():
        assert torch.equal(partial.tensors[f"model.{name}"], tensor)


def test_automatic_coefficient_is_a_multiple_of_the_activations_norm():
    model = runs.model("llama")
    documents = runs.documents(1)
    config = RMUConfig(layer_id=2, steering_coeff="auto:3", batch_size=2, max_steps=1, max_length=30)
    result = run(model, config)
    model = runs.model("llama")
    norms = []
    for document in documents[:2]:
        states = model(torch.tensor([document[:30]]), output_hidden_states=True).hidden_states[3]
        norms += states[0].norm(dim=-1).tolist()
    assert result.steering_coeffs[0] == pytest.approx(3 * np.mean(norms), rel=1e-4)
    assert float(result.control_vectors[0].norm()) == pytest.approx(result.steering_coeffs[0], rel=1e-5)


def test_what_the_metrics_say():
    result = run(runs.model("llama"))
    row = result.metrics[0]
    assert [one["step"] for one in result.metrics] == list(range(1, 7))
    assert row["retain_loss"] == row["retain_loss_masked"] == 0.0
    assert row["retain_cosine"] == pytest.approx(1.0)
    assert row["forget_loss"] > 0
    assert row["forget_loss"] != row["forget_loss_masked"]
    assert row["tokens"] > 0
    assert row["peak_memory_mb"] > 100
    assert row["grad_norm"] > 0
    assert result.metrics[-1]["retain_loss"] > 0


def test_noise_on_the_retain_target_is_drawn_anew_and_the_same_again():
    noisy = RMUConfig(**{**CONFIG.to_json(), "retain_noise": 0.5})
    first, again = run(runs.model("llama"), noisy), run(runs.model("llama"), noisy)
    assert [row["retain_loss"] for row in first.metrics] == [row["retain_loss"] for row in again.metrics]
    # Before anything is trained, the retain loss is alpha times the noise's variance.
    assert first.metrics[0]["retain_loss"] == pytest.approx(50 * 0.25, rel=0.1)


def test_accumulated_batches_are_a_larger_batch():
    equal = [runs.documents(5, count=16, longest=4)[0] * 4 for _ in range(16)]
    given_corpora = {
        "forget": runs.corpus([row[:6] for row in equal]),
        "retain": runs.corpus([row[1:7] for row in equal]),
    }
    base = {**CONFIG.to_json(), "max_steps": 2, "mode": "masked"}
    whole = RMUConfig(**{**base, "batch_size": 8})
    parts = RMUConfig(**{**base, "batch_size": 2, "grad_accum": 4})
    large = wf.unlearn(runs.model("llama"), config=whole, progress=False, **given_corpora)
    small = wf.unlearn(runs.model("llama"), config=parts, progress=False, **given_corpora)
    assert small.steps == large.steps == 2
    for name, tensor in large.tensors.items():
        torch.testing.assert_close(small.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_clipping_bounds_the_gradient():
    clipped = run(runs.model("llama"), RMUConfig(**{**CONFIG.to_json(), "grad_clip": 1e-9}))
    free = run(runs.model("llama"))
    before = decoder_of(runs.model("llama")).model.state_dict()
    moved = {
        kind: max(float((r.tensors[n] - before[n]).abs().max()) for n in r.tensors)
        for kind, r in (("clipped", clipped), ("free", free))
    }
    assert moved["clipped"] < 0.01 * moved["free"]


def test_the_end_of_the_corpora_is_the_end():
    with pytest.warns(WmdpFastWarning, match="last for 15 steps"):
        assert run(runs.model("llama"), RMUConfig(**{**CONFIG.to_json(), "max_steps": 100})).steps == 15
    twice = RMUConfig(**{**CONFIG.to_json(), "max_steps": 20, "epochs": 2})
    assert run(runs.model("llama"), twice).steps == 20
    with pytest.raises(ValueError, match="too few for grad_accum"):
        run(runs.model("llama"), RMUConfig(**{**CONFIG.to_json(), "grad_accum": 16}))


def test_wrong_requests_say_what_to_do(tmp_path):
    model = runs.model("llama")
    with pytest.raises(ValueError, match="2 retain corpora for 1 forget corpora"):
        wf.unlearn(model, forget=runs.corpus([[3]]), retain=[runs.corpus([[3]])] * 2)
    with pytest.raises(ValueError, match="need eval_tasks"):
        run(model, eval_every=2)
    with pytest.raises(ValueError, match="need eval_every"):
        run(model, eval_tasks="mmlu", stop_when="mmlu.acc<0.3")
    with pytest.raises(ValueError, match="already in memory"):
        run(model, device="cpu")
    with pytest.raises(ValueError, match="documents without tokens"):
        wf.unlearn(model, forget=runs.corpus([[3], []]), retain=runs.corpus([[3]]))
    with pytest.raises(ModelError, match="has 4 layers, 0 to 3"):
        run(model, RMUConfig(layer_id=4))
    with pytest.raises(ModelError, match="has 4 layers, 0 to 3"):
        run(runs.saved_model(tmp_path / "m", "llama"), RMUConfig(layer_id=7))
    with pytest.raises(ValueError, match="not one of tensorboard, wandb, trackio"):
        run(model, report_to="mlflow")


@pytest.mark.parametrize("package", reporting.TRACKERS)
def test_a_missing_tracker_says_how_to_install_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if package == "tensorboard" else package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        run(runs.model("llama"), report_to=package)


# Conditions and evaluations


def test_conditions():
    scores, before = {"bio": {"acc": 0.3}, "mmlu": {"acc": 0.55}}, {"bio": {"acc": 0.6}, "mmlu": {"acc": 0.58}}
    held = {
        "bio.acc<0.31": True,
        "bio.acc < .3": False,
        "bio.acc<=0.3": True,
        "mmlu.acc>=before-0.02": False,
        "mmlu.acc >= before - 0.04": True,
        "bio.acc<before": True,
    }
    assert {text: Condition.parse(text).holds(scores, before) for text in held} == held
    assert Condition.parse("./my.task.acc>0.1").task == "./my.task"
    for text in ("bio<0.3", "bio.acc=0.3", "bio.acc<0.3x", ""):
        with pytest.raises(ValueError, match="is no condition"):
            Condition.parse(text)
    with pytest.raises(TaskError, match=r"evaluated are bio\.acc, mmlu\.acc"):
        Condition.parse("chem.acc<0.3").holds(scores, before)


def test_wilson_interval_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    for right, count in [(0, 10), (37, 100), (100, 100)]:
        expected = stats.binomtest(right, count).proportion_ci(0.95, "wilson")
        assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.fixture
def evaluated(tmp_path):
    """A model folder with a tokenizer, and made-up questions."""
    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.save_pretrained(tmp_path / "base")
    tokenizers_zoo.tokenizer("llama3").save_pretrained(tmp_path / "base")
    rows = [
        {"question": f"What is {i}?", "choices": ["the wren", "an owl", "a jay", "a tit"], "answer": i % 4}
        for i in range(24)
    ]
    (tmp_path / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def with_evaluation(folder, output="out", **options):
    return run(
        folder / "base",
        RMUConfig(**{**CONFIG.to_json(), "learning_rate": 0.05}),
        output=folder / output,
        eval_tasks=str(folder / "birds.jsonl"),
        eval_options={"template": "mmlu"},
        **options,
    )


def test_evaluations_on_the_way_are_those_of_the_saved_model(evaluated):
    result = with_evaluation(evaluated, eval_every=4)
    assert [one["step"] for one in result.evaluations] == [0, 4, 6]
    for folder, one in (("base", result.evaluations[0]), ("out", result.evaluations[-1])):
        separate = wf.evaluate(
            evaluated / folder, tasks=str(evaluated / "birds.jsonl"), template="mmlu", progress=False
        )
        assert one["scores"] == {"birds": separate["birds"].metrics}
        assert one["questions"] == {"birds": 24}
    card = (evaluated / "out" / "README.md").read_text()
    # With what guessing gives, of four choices.
    assert f"| birds | 24 | 0.250 | {result.evaluations[0]['scores']['birds']['acc']:.3f} (" in card


def test_a_goal_ends_the_run(evaluated):
    result = with_evaluation(evaluated, eval_every=2, stop_when="birds.acc<=1.0")
    assert (result.steps, result.best_step) == (2, 2)
    assert "birds.acc<=1.0" in str(result.stopped)


def test_what_must_be_kept_takes_the_run_back(evaluated, monkeypatch):
    short = run(evaluated / "base", RMUConfig(**{**CONFIG.to_json(), "learning_rate": 0.05, "max_steps": 2}))
    evaluate = EvaluationLoop.evaluate

    def falling(self, steps, metrics):
        # The questions are too few to fall reliably; so say that they have after step 4.
        evaluate(self, steps, metrics)
        if steps == 4:
            self.stopped = "at step 4 no longer birds.acc>=before-1"
            self.best = kept[0]
        kept[:] = [self.best]

    kept = []
    monkeypatch.setattr(EvaluationLoop, "evaluate", falling)
    result = with_evaluation(evaluated, eval_every=2, keep_while="birds.acc>=before-1")
    assert (result.steps, result.best_step) == (4, 2)
    assert [one["step"] for one in result.evaluations] == [0, 2]
    for name, tensor in short.tensors.items():
        assert torch.equal(result.tensors[name], tensor)


# The command line


def test_importing_the_settings_loads_no_torch():
    code = "import sys, wmdp_fast; wmdp_fast.RMUConfig(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@WIDER_TYPE
@printed(r"\d+ of the \d+ documents of the forget corpus .* are in the retain corpus")
def test_the_command_unlearns_and_the_delta_gives_the_same(tmp_path, capsys):
    arguments = ["--layer-id", "1", "--update-layer-ids", "0,1", "--parameters", "mlp", "--steering-coeff", "auto:5"]
    arguments += ["--max-steps", "2", "--batch-size", "2", "--alpha", "10,20", "--dtype", "float32", "--quiet"]
    forget = [str(demo.corpus_path("forget")), str(demo.corpus_path("retain"))]
    out = str(tmp_path / "out")
    corpora_options = ["--forget", forget[0], "--forget", forget[1], "--retain", forget[1]]
    code = cli.main(["unlearn", str(demo.model_path()), *corpora_options, *arguments, "--output", out])
    assert code == 0
    assert "2 steps in" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text())
    assert record["settings"]["alpha"] == [10.0, 20.0]
    assert len(record["trained"]) == 6
    assert cli.main(["apply-delta", str(demo.model_path()), out, str(tmp_path / "again")]) == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert cli.main(["unlearn", "nowhere", "--forget", "x", "--retain", "y", "--output", out]) == 1
    assert "exists already" in capsys.readouterr().err


@WIDER_TYPE
def test_corpora_by_name_are_read_from_a_folder_in_place_of_the_hub(tmp_path):
    for domain, name in (("forget", "bio-forget-corpus"), ("retain", "wikitext")):
        shutil.copy(demo.corpus_path(domain), tmp_path / f"{name}.jsonl")
    base = ["unlearn", str(demo.model_path()), "--layer-id", "1", "--max-steps", "2", "--dtype", "float32", "--quiet"]
    named = ["--forget", "bio-forget-corpus", "--retain", "wikitext", "--data", str(tmp_path)]
    assert cli.main([*base, *named, "--output", str(tmp_path / "named")]) == 0
    paths = ["--forget", str(demo.corpus_path("forget")), "--retain", str(demo.corpus_path("retain"))]
    assert cli.main([*base, *paths, "--output", str(tmp_path / "by path")]) == 0
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("named", "by path")]
    assert weights[0] == weights[1]


def test_the_command_refuses_what_is_no_value(capsys):
    command = ["unlearn", "m", "--forget", "f", "--retain", "r", "--output", "o"]
    for option, value in (("--alpha", "much"), ("--raw-lines", "maybe"), ("--mode", "both")):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*command, option, value])
        assert option in capsys.readouterr().err
    # What the type of a setting allows and the method does not.
    assert cli.main([*command, "--layer-id", "-1"]) == 2
    assert capsys.readouterr().err == "error: layer_id must be a whole number of at least 0, not -1\n"
