"""A method that is added in one place gets what the trainer, sweeps and output offer; one without steps too."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

import wmdp_fast as wf
from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from tests.support.ascent import Ascent, AscentConfig
from tests.support.expected_warnings import ONE_LETTER
from wmdp_fast.checkpoints import tensor_file
from wmdp_fast.checkpoints.checkpoint import apply_delta
from wmdp_fast.exceptions import DivergedError
from wmdp_fast.unlearning.method import Setup, StepInput, StepOutput

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from wmdp_fast.unlearning.method import Method

pytestmark = ONE_LETTER

CONFIG = AscentConfig(learning_rate=5e-3, batch_size=2, max_steps=6, max_length=30, save_every=2, seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a tokenizer, and made-up questions."""
    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.save_pretrained(tmp_path / "base")
    tokenizers_zoo.tokenizer("llama3").save_pretrained(tmp_path / "base")
    rows = [{"question": f"What is {i}?", "choices": ["a wren", "an owl"], "answer": i % 2} for i in range(24)]
    for name in ("birds", "trees"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def asked(folder: Path, **options: Any) -> dict[str, Any]:
    return {"eval_tasks": str(folder / "birds.jsonl"), "eval_options": {"template": "mmlu"}, **options}


def test_it_does_what_it_says() -> None:
    still = runs.unlearn(runs.model("llama"), dataclasses.replace(CONFIG, learning_rate=1e-12))
    forgotten = runs.unlearn(runs.model("llama"), dataclasses.replace(CONFIG, retain_weight=0.0))
    kept = runs.unlearn(runs.model("llama"), CONFIG)
    assert forgotten.metrics[-1]["forget_loss"] > still.metrics[-1]["forget_loss"] + 0.1
    assert kept.steps == 6
    assert set(kept.findings.record) == {"ceiling"}
    assert (kept.steering_coeffs, kept.effects, kept.control_vectors) == ((), (), ())


def test_its_steps_are_those_of_a_plain_loop() -> None:
    result = runs.unlearn(runs.model("llama"), CONFIG)
    from wmdp_fast.unlearning.optim import AdamW

    model = runs.model("llama")
    trained = {name: p for name, p in model.model.named_parameters() if name.endswith("mlp.down_proj.weight")}
    optimizer = AdamW(trained, CONFIG.learning_rate)
    documents = {"forget": runs.documents(1), "retain": runs.documents(2)}

    def loss(kind: str, step: int) -> Tensor:
        lengths = {"forget": CONFIG.max_length, "retain": CONFIG.retain_max_length}
        rows = [row[: lengths[kind]] for row in documents[kind][2 * step : 2 * step + 2]]
        found = [model(torch.tensor([row])).logits[0, :-1].log_softmax(-1) for row in rows]
        nlls = [-one.gather(1, torch.tensor(row[1:])[:, None]).sum() for one, row in zip(found, rows, strict=True)]
        return torch.stack(nlls).sum() / sum(len(row) - 1 for row in rows)

    ceiling = 3 * float(loss("forget", 0).detach())
    for step in range(6):
        total = -loss("forget", step).clamp_max(ceiling) + loss("retain", step)
        gradients = torch.autograd.grad(total, list(trained.values()))
        optimizer.step(dict(zip(trained, gradients, strict=True)))
    for name, tensor in result.tensors.items():
        # AdamW's first steps make as much of a tiny gradient as of a large one, so a few rounding errors show.
        assert float((tensor - trained[name].detach()).abs().mean()) < 1e-4


def test_it_resumes_to_the_same_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Ascent.step

    def interrupted(self: Ascent, given: StepInput) -> StepOutput:
        if given.index == 5:
            raise KeyboardInterrupt
        return step(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(Ascent, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.unlearn(folder / "base", CONFIG, output=folder / "out")
    assert not (folder / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Ascent, "prepare", None)  # what it found is in the state
        resumed = runs.unlearn(folder / "base", CONFIG, output=folder / "out", resume=True)
    straight = runs.unlearn(folder / "base", CONFIG, output=folder / "straight")
    assert resumed.tensors.keys() == straight.tensors.keys()
    for name, tensor in straight.tensors.items():
        assert torch.equal(resumed.tensors[name], tensor)
    assert resumed.findings == straight.findings
    assert [row["step"] for row in resumed.metrics] == [1, 2, 3, 4, 5, 6]


def test_it_is_evaluated_on_the_way_and_stopped(folder: Path) -> None:
    options = asked(folder, eval_every=2, stop_when="birds.acc<=1.0")
    result = runs.unlearn(folder / "base", CONFIG, output=folder / "out", **options)
    assert [one["step"] for one in result.evaluations] == [0, 2]
    assert result.steps == 2
    assert "birds.acc<=1.0" in str(result.stopped)
    separate = wf.evaluate(folder / "out", tasks=str(folder / "birds.jsonl"), template="mmlu", progress=False)
    assert result.evaluations[-1]["scores"] == {"birds": separate["birds"].metrics}


def test_its_card_record_and_delta_are_its_own(folder: Path) -> None:
    result = runs.unlearn(folder / "base", CONFIG, output=folder / "out")
    card = (folder / "out" / "README.md").read_text()
    assert "after 6 steps of gradient ascent, made with" in card
    assert "tags: [unlearning, gradient-ascent, wmdp-fast]" in card
    assert "Its answers were made unlikely. Much of what was suppressed is known to come back:\n\n- by fine-tun" in card
    assert "| retain_weight | 1.0 |" in card
    assert "RMU" not in card
    assert "steering" not in card
    record = json.loads((folder / "out" / "unlearn.json").read_text())
    assert record["method"] == "gradient-ascent"
    assert record["settings"] == json.loads(json.dumps(CONFIG.to_json()))
    assert record["ceiling"] == result.findings.record["ceiling"]
    _, metadata = tensor_file.read_tensors(folder / "out" / "delta.safetensors")
    assert metadata["method"] == "gradient-ascent"
    assert json.loads(metadata["wmdp_fast"])["ceiling"] == record["ceiling"]
    assert "control_vectors" not in metadata
    apply_delta(folder / "base", folder / "out", folder / "again")
    for path in (folder / "out").glob("*.safetensors"):
        assert path.read_bytes() == (folder / "again" / path.name).read_bytes()


def test_its_settings_are_swept(folder: Path) -> None:
    result = wf.sweep(
        folder / "base",
        forget=runs.corpus(runs.documents(1), "forget"),
        retain=runs.corpus(runs.documents(2), "retain"),
        over={"learning_rate": [1e-3, 5e-3], "max_steps": [2, 6]},
        forget_tasks=str(folder / "birds.jsonl"),
        retain_tasks=str(folder / "trees.jsonl"),
        eval_options={"template": "mmlu"},
        output=folder / "sweep",
        config=CONFIG,
        progress=False,
    )
    assert [run.settings["max_steps"] for run in result.runs] == [2, 6, 2, 6]
    alone = runs.unlearn(folder / "base", result.config_of(3), output=folder / "out", **asked(folder))
    assert result.runs[3].scores["birds"] == alone.evaluations[-1]["scores"]["birds"]
    assert result.command(3) is None
    with pytest.raises(ValueError, match="alpha cannot be swept; what can is learning_rate, max_steps"):
        wf.sweep(
            folder / "base",
            forget=runs.corpus(runs.documents(1)),
            retain=runs.corpus(runs.documents(2)),
            over={"alpha": [1.0]},
            forget_tasks="birds",
            retain_tasks="trees",
            output=folder / "other",
            config=CONFIG,
        )


def test_a_run_that_diverges_is_told_what_to_lower() -> None:
    config = AscentConfig(learning_rate=1e38, batch_size=2, max_steps=3, max_length=30)
    with pytest.raises(DivergedError, match=r"lower the learning rate \(now 1e\+38\)") as caught:
        runs.unlearn(runs.model("llama"), config)
    assert "alpha" not in str(caught.value)


def test_common_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="learning_rate must be a number above 0"):
        AscentConfig(learning_rate=0)
    with pytest.raises(TypeError):
        AscentConfig(alpha=1.0)  # type: ignore[call-arg]


# A method without steps


@dataclass(frozen=True, kw_only=True)
class HalvedConfig(AscentConfig):
    method_name: ClassVar[str] = "halved"
    one_shot: ClassVar[bool] = True
    max_steps: int = 1

    def method(self, setup: Setup) -> Method:
        return Halved(setup, 0.0)


class Halved(Ascent):
    """Halves every trained weight."""

    def step(self, given: StepInput) -> StepOutput:
        with torch.no_grad():
            terms = torch.stack([self.loss(batch) for batch in given.pairs[0]])
            for parameter in self.setup.trained.values():
                parameter.mul_(0.5)
        return StepOutput({}, terms)


def test_a_method_without_steps_is_evaluated_and_written(folder: Path) -> None:
    config = HalvedConfig(batch_size=2, max_length=30, parameters="mlp.up_proj")
    result = runs.unlearn(folder / "base", config, output=folder / "out", **asked(folder))
    assert [one["step"] for one in result.evaluations] == [0, 1]
    assert (result.steps, result.metrics[1]["grad_norm"]) == (1, 0.0)
    old, new = (load_file(folder / name / "model.safetensors") for name in ("base", "out"))
    for name, tensor in old.items():
        assert torch.equal(new[name], tensor / 2 if "up_proj" in name else tensor), name
