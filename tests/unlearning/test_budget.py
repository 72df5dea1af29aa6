"""The budget on the distance from the original model: what it is, when it ends a run, and what is then saved."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.nn.functional import kl_div

from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from wmdp_fast import cli
from wmdp_fast.checkpoints import checkpoint
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.report.runs import read_run
from wmdp_fast.unlearning.methods.graddiff import GradDiffConfig
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.rmu.method import RMU

DOCUMENTS = ["The wren sings at dawn, and the owl hoots at night.", "A carp swims. " * 60]

CONFIGS = {
    "graddiff": GradDiffConfig(learning_rate=3e-4, batch_size=2, max_steps=8, max_length=30, save_every=1),
    "rmu": RMUConfig(
        layer_id=2,
        steering_coeff=4.0,
        alpha=1.0,
        learning_rate=3e-3,
        batch_size=2,
        max_steps=8,
        max_length=30,
        save_every=1,
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model folder with a tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("budget")
    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.save_pretrained(folder / "base")
    tokenizers_zoo.tokenizer("llama3").save_pretrained(folder / "base")
    (folder / "general.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return folder


def unlearned(base, config, **options):
    options = {"kl_text": base / "general.jsonl", "kl_every": 2, "max_kl": 1e9, **options}
    return runs.unlearn(base / "base", config, **options)


def plain_kl(first, second, tokenizer):
    """KL(first || second) by the definition, a document at a time in pieces of 256 tokens."""
    total, count = 0.0, 0
    for text in DOCUMENTS:
        ids = tokenizer(text)["input_ids"]
        for at in range(0, len(ids), 256):
            piece = torch.tensor([ids[at : at + 256]])
            with torch.no_grad():
                p, q = (model(piece).logits[0, :-1].double().log_softmax(-1) for model in (first, second))
            total += float(kl_div(q, p, log_target=True, reduction="sum"))
            count += piece.shape[1] - 1
    return total / count


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_divergence_from_the_original_and_ends_the_run(name, base, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    free = unlearned(base, CONFIGS[name], output=tmp_path / "free")
    measured = {one["step"]: one["kl"] for one in free.budget["measured"]}
    assert list(measured) == [2, 4, 6, 8]
    assert 0 < measured[2] < measured[4] < measured[6]
    assert [row.get("kl") for row in free.metrics] == [measured.get(step) for step in range(1, 9)]
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (base / "base", tmp_path / "free")]
    tokenizer = AutoTokenizer.from_pretrained(base / "base")
    assert measured[8] == pytest.approx(plain_kl(*models, tokenizer), rel=1e-3)
    assert (free.stopped, free.best_step, free.budget["kl"]) == (None, 8, measured[8])

    most = (measured[4] + measured[6]) / 2
    within = unlearned(base, CONFIGS[name], output=tmp_path / "within", max_kl=most)
    assert within.stopped.startswith(
        f"at step 6 with a KL of {measured[6]:.4g} from the original, above max_kl {most:g}"
    )
    assert (within.steps, within.best_step, within.budget["kl"]) == (6, 4, measured[4])
    if name == "rmu":  # its steps do not depend on how many are to come
        four = runs.unlearn(base / "base", dataclasses.replace(CONFIGS[name], max_steps=4))
        assert all(torch.equal(within.tensors[key], tensor) for key, tensor in four.tensors.items())
    record = json.loads((tmp_path / "within" / "unlearn.json").read_text())
    assert record["budget"] == within.budget
    assert record["budget"]["text"]["name"] == "general"
    card = (tmp_path / "within" / "README.md").read_text()
    assert (
        f"general text (general, {record['budget']['text']['tokens']} tokens): {measured[4]:.4g} nats per tok" in card
    )


def test_a_killed_run_goes_on_to_the_same_bits(base, tmp_path, monkeypatch):
    config, step = CONFIGS["rmu"], RMU.step

    def killed(self, given):
        if given.index == 5:
            raise KeyboardInterrupt
        return step(self, given)

    options = {"max_kl": 1e9, "kl_every": 3}
    with monkeypatch.context() as patch:
        patch.setattr(RMU, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            unlearned(base, config, output=tmp_path / "out", **options)
    with pytest.raises(ModelError, match="belongs to a run with other max_kl"):
        unlearned(base, config, output=tmp_path / "out", resume=True, **{**options, "kl_every": 2})
    resumed = unlearned(base, config, output=tmp_path / "out", resume=True, **options)
    straight = unlearned(base, config, **options)
    assert resumed.budget == straight.budget
    assert [one["step"] for one in resumed.budget["measured"]] == [3, 6, 8]
    assert all(torch.equal(resumed.tensors[name], tensor) for name, tensor in straight.tensors.items())
    # One that had left the budget and then could not write takes no further step.
    options["max_kl"] = (straight.budget["measured"][0]["kl"] + straight.budget["measured"][1]["kl"]) / 2

    def full(*_args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checkpoint", full)
        with pytest.raises(OSError, match="no space"):
            unlearned(base, config, output=tmp_path / "left", **options)
    with monkeypatch.context() as patch:
        patch.setattr(RMU, "step", killed)
        left = unlearned(base, config, output=tmp_path / "left", resume=True, **options)
    assert (left.steps, left.best_step, left.budget["kl"]) == (6, 3, straight.budget["measured"][0]["kl"])


def test_a_run_that_leaves_the_budget_at_once_changes_nothing(base, tmp_path):
    questions = tmp_path / "birds.jsonl"
    rows = [{"question": f"What is {i}?", "choices": ["a wren", "an owl"], "answer": i % 2} for i in range(8)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"eval_tasks": str(questions), "eval_options": {"template": "mmlu"}}
    with pytest.warns(WmdpFastWarning, match=r"Lower the learning rate, or measure more often \(--kl-every\)"):
        result = unlearned(base, CONFIGS["rmu"], max_kl=1e-9, kl_every=1, **asked)
    assert (result.steps, result.best_step, result.budget["kl"]) == (1, 0, 0.0)
    assert [one["step"] for one in result.evaluations] == [0]
    original = runs.model("llama").state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in result.tensors.items())
    # What is saved is evaluated, be it of a step that was not.
    free = unlearned(base, CONFIGS["rmu"], kl_every=3)
    most = (free.budget["measured"][0]["kl"] + free.budget["measured"][1]["kl"]) / 2
    within = unlearned(base, CONFIGS["rmu"], max_kl=most, kl_every=3, **asked)
    assert (within.best_step, [one["step"] for one in within.evaluations]) == (3, [0, 3])
    # With a condition it is the last evaluation that fulfilled both.
    both = unlearned(base, CONFIGS["rmu"], max_kl=most, kl_every=3, eval_every=2, keep_while="birds.acc>=0.0", **asked)
    assert (both.steps, both.best_step) == (6, 4)
    assert [one["step"] for one in both.budget["measured"]] == [2, 3, 4, 6]


def test_what_cannot_be_is_refused_before_anything_is_loaded(base, tmp_path, capsys):
    with pytest.raises(ValueError, match="kl_text and kl_every are about max_kl, which is not set"):
        unlearned(base, CONFIGS["rmu"], max_kl=None)
    with pytest.raises(ValueError, match="max_kl must be a number above 0, not 0"):
        unlearned(base, CONFIGS["rmu"], max_kl=0)
    corpora = ["--forget", str(base / "forget.jsonl"), "--retain", str(base / "general.jsonl")]
    (base / "forget.jsonl").write_text('"A wren."\n')
    command = ["unlearn", str(base / "base"), *corpora, "--output", str(tmp_path / "out"), "--max-kl", "0.1", "--quiet"]
    command += ["--layer-id", "2"]
    assert cli.main([*command, "--kl-text", str(base / "general.jsonl")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the text general is not held out: its file is of the retain corpus" in error
    assert "pass another kl_text" in error


def test_the_command_measures_on_a_text_of_this_package(base, tmp_path, capsys):
    (base / "forget.jsonl").write_text('"A wren sings."\n' * 4)
    corpora = ["--forget", str(base / "forget.jsonl"), "--retain", str(base / "general.jsonl")]
    settings = ["--layer-id", "2", "--max-steps", "2", "--batch-size", "1", "--learning-rate", "1e-3", "--quiet"]
    output = ["--max-kl", "5", "--kl-every", "1", "--output", str(tmp_path / "out")]
    assert cli.main(["unlearn", str(base / "base"), *corpora, *settings, *output]) == 0
    printed = capsys.readouterr().out
    budget = json.loads((tmp_path / "out" / "unlearn.json").read_text())["budget"]
    line = f"KL from the original: {budget['kl']:.4g} nats per token, of at most 5"
    assert line in printed
    assert (budget["text"]["name"], budget["text"]["files"]) == ("general text", [])
    assert budget["text"]["tokens"] > 800
    assert cli.main(["show", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert f"KL from the original on general text: {budget['kl']:.4g} nats per token" in shown
    [plot] = [one for one in read_run(tmp_path / "out").plots if one.unit == "KL, nats per token"]
    assert (plot.curves[0].steps, plot.curves[0].values[-1]) == ([1, 2], budget["kl"])
