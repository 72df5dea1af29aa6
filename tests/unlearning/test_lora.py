"""LoRA: factors are trained in the live model, and saved merged into its tensors or as an adapter for PEFT."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import wmdp_fast as wf
from tests.reference.methods import training
from tests.reference.methods.npo import by_mean as plain_npo
from tests.reference.methods.rr import Rerouting as PlainRerouting
from tests.support import tiny_models, tokenizers_zoo
from tests.support import unlearning_runs as runs
from tests.support.ascent import Ascent, AscentConfig
from wmdp_fast.checkpoints.checkpoint import apply_delta
from wmdp_fast.exceptions import DivergedError, ModelError
from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.unlearning import parameters
from wmdp_fast.unlearning.adapter_config import AdapterConfig
from wmdp_fast.unlearning.lora import LoRA
from wmdp_fast.unlearning.method import Findings
from wmdp_fast.unlearning.methods.npo import NPOConfig
from wmdp_fast.unlearning.methods.rr import RRConfig
from wmdp_fast.unlearning.optim import AdamW
from wmdp_fast.unlearning.parameters import TrainedParameter, lora_targets, told

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.unlearning.method import Method, Setup, StepInput, StepOutput


@dataclass(frozen=True, kw_only=True)
class Config(AscentConfig, AdapterConfig):
    method_name: ClassVar[str] = "ascent"

    def method(self, setup: Setup) -> Method:
        return Comparing(setup, self.retain_weight)


class Comparing(Ascent):
    """Also says what the original model's loss is when the run has ended."""

    def findings(self, _steps: int) -> Findings:
        batch = self.setup.batches.forget(0, 0)
        with torch.no_grad():
            now = float(self.loss(batch))
            with self.setup.as_original():
                before = float(self.loss(batch))
        return Findings(record={"ceiling": self.ceiling, "now": now, "before": before})


MLP = ("gate_proj", "up_proj", "down_proj")
LORA = LoRA(r=4, targets=("q_proj", "mlp"))
CONFIG = Config(lora=LORA, learning_rate=1e-2, batch_size=2, max_steps=3, max_length=20, save_every=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Path]:
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path_factory.mktemp("base")
        model = runs.model("llama")
        tokenizer = tokenizers_zoo.tokenizer("llama3")
        # Where an adapter is put on, the embedding takes the tokenizer's size.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        rows = [{"question": f"What is {i}?", "choices": ["a wren", "an owl"], "answer": i % 2} for i in range(8)]
        (folder / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        made[dtype] = folder
    return made


def asked(folder: Path, **options: Any) -> dict[str, Any]:
    return {"eval_tasks": str(folder / "birds.jsonl"), "eval_options": {"template": "mmlu"}, **options}


def factors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def responses(folder: Path) -> list[Any]:
    """The log-likelihood of every choice, as samples have it."""
    [path] = folder.glob("samples_birds*.jsonl")
    return [json.loads(line)["resps"] for line in path.read_text().splitlines()]


# The setting


@pytest.mark.parametrize("text", ["r=8", "r=16,alpha=32,dropout=0,targets=q_proj+v_proj", "alpha=0.5,dropout=0.05"])
def test_it_is_read_as_it_is_written(text: str) -> None:
    lora = LoRA.parse(text)
    assert LoRA.parse(str(lora)) == lora
    assert Config(lora=text).lora == lora  # type: ignore[arg-type]
    assert Config(**Config(lora=lora).to_json()) == Config(lora=lora)


def test_what_is_left_out_has_its_default() -> None:
    assert LoRA.parse("r=8") == LoRA(r=8, alpha=16.0, dropout=0.0, targets=())
    assert str(LoRA(r=8, targets=("mlp",))) == "r=8,alpha=16,dropout=0,targets=mlp"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16", "'16' is no setting of it; write it such as r=16,alpha=32"),
        ("r=16,rank=3", "'rank=3' is no setting of it"),
        ("r=0", "r of lora must be a whole number of at least 1"),
        ("r=x", "invalid literal"),
        ("dropout=1", "dropout of lora must be below 1"),
        ("targets=q_proj v_proj", "targets of lora are names of linear layers"),
    ],
)
def test_what_it_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRA.parse(text)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="save_adapter is for runs with lora"):
        Config(save_adapter=True)
    with pytest.raises(ValueError, match="an adapter is saved as it was trained"):
        Config(lora=LORA, save_adapter=True, save_dtype="bfloat16")
    with pytest.raises(TypeError, match="lora"):
        dataclasses.replace(runs.CONFIG, lora=LORA)  # type: ignore[call-arg]


# What is trained


def test_steps_are_those_of_a_plain_loop_with_peft() -> None:
    config = dataclasses.replace(CONFIG, lora=dataclasses.replace(LORA, targets=("q_proj", "down_proj")))
    ours = runs.model("llama")
    result = runs.unlearn(ours, dataclasses.replace(config, save_adapter=True))
    # The first values are drawn by layer in their order.
    theirs = peft.get_peft_model(
        runs.model("llama"), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    )
    trained = {name: one for name, one in theirs.named_parameters() if one.requires_grad}
    generator = torch.Generator().manual_seed(config.seed)
    for name, one in trained.items():
        if "lora_A" in name:
            bound = one.shape[1] ** -0.5
            one.data = torch.empty(one.shape).uniform_(-bound, bound, generator=generator)
    optimizer = AdamW(trained, config.learning_rate)
    documents = {"forget": runs.documents(1), "retain": runs.documents(2)}

    def loss(kind: str, step: int) -> torch.Tensor:
        length = {"forget": config.max_length, "retain": config.retain_max_length}[kind]
        rows = [row[:length] for row in documents[kind][2 * step : 2 * step + 2]]
        losses = [
            torch.nn.functional.cross_entropy(
                theirs(torch.tensor([row])).logits[0, :-1], torch.tensor(row[1:]), reduction="sum"
            )
            for row in rows
        ]
        return torch.stack(losses).sum() / sum(len(row) - 1 for row in rows)

    ceiling = 3 * float(loss("forget", 0).detach())
    for step in range(3):
        total = -loss("forget", step).clamp_max(ceiling) + loss("retain", step)
        gradients = torch.autograd.grad(total, list(trained.values()))
        optimizer.step(dict(zip(trained, gradients, strict=True)))
    assert result.tensors.keys() == {name.replace(".default", "") for name in trained}
    for name, one in trained.items():
        found = result.tensors[name.replace(".default", "")]
        # AdamW's first steps make as much of a tiny gradient as of a large one, so a few rounding errors show.
        assert float((found - one.detach()).abs().mean()) < 1e-4
    merged = theirs.merge_and_unload()
    for name, tensor in ours.state_dict().items():
        assert float((tensor - merged.state_dict()[name]).abs().mean()) < 1e-4, name


RR = RRConfig(target_layers=(1, 2), lora=LoRA(r=4, targets=("mlp",)), learning_rate=3e-4, schedule="linear")
NPO = NPOConfig(beta=0.5, lora=LoRA(r=4), learning_rate=3e-4, warmup=0.0)


@pytest.mark.parametrize(
    ("config", "loss", "targets"),
    [
        (RR, PlainRerouting((1, 2), 10.0, steps=5, seed=42), [f"layers.{i}.mlp.{p}" for i in range(3) for p in MLP]),
        (NPO, partial(plain_npo, beta=0.5), [*MLP, "q_proj", "k_proj", "v_proj", "o_proj"]),
    ],
)
def test_methods_train_it_as_an_ordinary_trainer_does(config: Any, loss: Any, targets: list[str]) -> None:
    config = dataclasses.replace(
        config, save_adapter=True, batch_size=2, max_steps=5, max_length=30, retain_max_length=30
    )
    result = runs.unlearn(runs.model("llama"), config)
    model = peft.inject_adapter_in_model(
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets), runs.model("llama")
    )
    factors = {name: one for name, one in model.named_parameters() if ".lora_" in name}
    generator = torch.Generator().manual_seed(config.seed)
    for name, one in factors.items():
        if "lora_A" in name:
            bound = one.shape[1] ** -0.5
            one.data = torch.empty(one.shape).uniform_(-bound, bound, generator=generator)
    plain = training.train(
        model,
        runs.documents(1),
        runs.documents(2),
        loss,
        trained=".lora_",
        learning_rate=config.learning_rate,
        steps=5,
        batch_size=2,
        max_length=30,
        pad=runs.PAD,
        warmup_steps=0,
    )
    for name, losses in (("forget_loss", plain.forget_losses), ("retain_loss", plain.retain_losses)):
        found = torch.tensor([row[name] for row in result.metrics])
        torch.testing.assert_close(found, torch.tensor(losses), rtol=1e-5, atol=1e-5)
    assert len(result.tensors) == len(factors)
    for name, one in factors.items():
        found = result.tensors[f"base_model.model.{name.replace('.default', '')}"]
        torch.testing.assert_close(found, one.detach(), rtol=0, atol=1e-5)


def test_it_begins_as_the_base_exactly_and_knows_it_to_the_end(folders: dict[torch.dtype, Path]) -> None:
    base = folders[torch.float32]
    plain = runs.unlearn(base, dataclasses.replace(CONFIG, lora=None, max_steps=1))
    for save_adapter in (False, True):
        result = runs.unlearn(base, dataclasses.replace(CONFIG, save_adapter=save_adapter))
        for name in ("forget_loss", "retain_loss"):
            assert result.metrics[0][name] == plain.metrics[0][name]
        assert result.findings.record["before"] == plain.metrics[0]["forget_loss"]
        assert result.findings.record["now"] > result.findings.record["before"]


def test_layers_that_were_never_loaded_are_not_needed(folders: dict[torch.dtype, Path], tmp_path: Path) -> None:
    base = folders[torch.float32]
    config = FirstLayersConfig(**{name: getattr(CONFIG, name) for name in ("lora", "batch_size", "max_length")})
    config = dataclasses.replace(config, max_steps=2, learning_rate=1e-2)
    result = runs.unlearn(base, config, output=tmp_path / "out")
    assert result.model is None
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(result.tensors)
    assert {name.split(".")[2] for name in changed} == {"0", "1"}
    adapter = runs.unlearn(base, dataclasses.replace(config, save_adapter=True), output=tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["layers_to_transform"] == [0, 1]
    assert settings["target_modules"] == ["down_proj", "gate_proj", "q_proj", "up_proj"]
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    put_in = {name.replace(".default", ""): one for name, one in loaded.named_parameters() if "lora_" in name}
    assert put_in.keys() == adapter.tensors.keys()
    assert all(torch.equal(one, adapter.tensors[name]) for name, one in put_in.items())


@dataclass(frozen=True, kw_only=True)
class FirstLayersConfig(Config):
    """Only the first two layers are run; forget documents' states there are made small."""

    method_name: ClassVar[str] = "shrunk"

    @property
    def depth(self) -> int:
        return 2

    def trained_layers(self, _num_layers: int, /) -> range:
        return range(2)

    def method(self, setup: Setup) -> Method:
        return Shrinking(setup, self.retain_weight)


class Shrinking(Ascent):
    def loss(self, batch: Any) -> torch.Tensor:
        hidden = self.setup.decoder.model(**batch.inputs, use_cache=False).last_hidden_state
        return hidden[batch.attention_mask.bool()].square().mean()


# What is saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_are_merged_in_float32_and_then_rounded(
    folders: dict[torch.dtype, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    base = folders[dtype]
    result = runs.unlearn(base, CONFIG, output=tmp_path / "out")
    runs.unlearn(base, dataclasses.replace(CONFIG, save_adapter=True), output=tmp_path / "adapter")
    adapter = factors(tmp_path / "adapter")
    assert {one.dtype for one in adapter.values()} == {torch.float32}
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in before.items():
        path = f"base_model.model.{name.removesuffix('.weight')}"
        expected = tensor
        if f"{path}.lora_A.weight" in adapter:
            product = adapter[f"{path}.lora_B.weight"] @ adapter[f"{path}.lora_A.weight"]
            expected = (tensor.float() + 2 * product).to(dtype)
            assert name in result.tensors
        assert torch.equal(after[name], expected), name
    assert len(result.tensors) == len(adapter) // 2 == 16
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text())
    assert record["settings"]["lora"] == "r=4,alpha=8,dropout=0,targets=q_proj+mlp"
    assert "parameters" not in record["settings"]
    assert (record["saved"]["lost_to_rounding"] > 0) is (dtype == torch.bfloat16)
    apply_delta(base, tmp_path / "out", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_what_rounding_would_undo_is_saved_in_float32(folders: dict[torch.dtype, Path]) -> None:
    with pytest.warns(wf.WmdpFastWarning, match="weights trained in float32 are saved in float32"):
        result = runs.unlearn(folders[torch.bfloat16], dataclasses.replace(CONFIG, learning_rate=1e-5))
    assert result.saving.lost_as_checkpoint > 0.1
    assert {one.dtype for one in result.tensors.values()} == {torch.float32}


def test_evaluations_are_of_what_is_saved(folders: dict[torch.dtype, Path], tmp_path: Path) -> None:
    base = folders[torch.float32]
    for name, save_adapter in (("out", False), ("adapter", True)):
        config = dataclasses.replace(CONFIG, save_adapter=save_adapter)
        options = asked(base, eval_every=2, keep_while="birds.acc>=0")
        result = runs.unlearn(base, config, output=tmp_path / name, **options)
        assert [one["step"] for one in result.evaluations] == [0, 2, 3]
        of_it = {"peft": str(tmp_path / name)} if save_adapter else {}
        separate = wf.evaluate(
            base if save_adapter else tmp_path / name,
            tasks=str(base / "birds.jsonl"),
            template="mmlu",
            progress=False,
            **of_it,
        )
        assert result.evaluations[-1]["scores"] == {"birds": separate["birds"].metrics}
        separate.save(tmp_path / f"separate-{name}" / "results.json", log_samples=True)
        kept = tmp_path / name / "evaluations" / "step-3"
        assert responses(kept) == responses(tmp_path / f"separate-{name}")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "`wmdp-fast eval BASE --peft THIS_FOLDER`" in card
    assert "delta.safetensors" not in card
    assert not (tmp_path / "adapter" / "delta.safetensors").exists()


def test_it_resumes_to_the_same_bytes_with_what_is_dropped_out(
    folders: dict[torch.dtype, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = folders[torch.bfloat16]
    config = dataclasses.replace(CONFIG, lora=dataclasses.replace(LORA, dropout=0.3))
    straight = runs.unlearn(base, config, output=tmp_path / "straight")
    assert straight.metrics[1]["forget_loss"] != runs.unlearn(base, CONFIG).metrics[1]["forget_loss"]
    step = Ascent.step

    def interrupted(self: Ascent, given: StepInput) -> StepOutput:
        if given.index == 2:
            raise KeyboardInterrupt
        return step(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(Ascent, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.unlearn(base, config, output=tmp_path / "out")
    with pytest.raises(ModelError, match="belongs to a run with other settings"):
        runs.unlearn(base, CONFIG, output=tmp_path / "out", resume=True)
    runs.unlearn(base, config, output=tmp_path / "out", resume=True)
    for name in ("model.safetensors", "delta.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


# The model in memory


def as_it_is(model: torch.nn.Module) -> tuple[Any, ...]:
    return (
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [(name, one.requires_grad, one.dtype) for name, one in model.named_parameters()],
        sorted(vars(model)),
        sorted(vars(model.model)),
    )


def test_a_model_in_memory_ends_up_merged_and_otherwise_as_it_was() -> None:
    model = runs.model("llama").train()
    model.model.layers[0].requires_grad_(False)
    found, before = as_it_is(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = runs.unlearn(model, CONFIG)
    assert as_it_is(model) == found
    after = model.state_dict()
    changed = {name.removeprefix("model.") for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(result.tensors)
    assert all(torch.equal(after[f"model.{name}"], tensor) for name, tensor in result.tensors.items())


def test_after_a_failure_it_is_exactly_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = runs.model("llama")
    found, before = as_it_is(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DivergedError):
        runs.unlearn(model, dataclasses.replace(CONFIG, learning_rate=1e38))
    assert as_it_is(model) == found

    def broken(_self: Comparing, _steps: int) -> Findings:
        raise RuntimeError("broken")

    # When factors are merged already.
    monkeypatch.setattr(Comparing, "findings", broken)
    with pytest.raises(RuntimeError, match="broken"):
        runs.unlearn(model, CONFIG)
    # When PEFT has put in some of them.
    monkeypatch.setattr(peft, "inject_adapter_in_model", half_way(peft.inject_adapter_in_model))
    with pytest.raises(ModelError, match="PEFT cannot put LoRA on LlamaForCausalLM: out of luck"):
        runs.unlearn(model, CONFIG)
    assert as_it_is(model) == found
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def half_way(inject: Any) -> Any:
    def injected(config: Any, model: Any, **options: Any) -> None:
        config.target_modules = sorted(config.target_modules)[:3]
        inject(config, model, **options)
        raise ValueError("out of luck")

    return injected


def test_a_sweep_gives_the_model_its_matrices_back(folders: dict[torch.dtype, Path], tmp_path: Path) -> None:
    base = folders[torch.float32]
    (tmp_path / "trees.jsonl").write_bytes((base / "birds.jsonl").read_bytes())
    model = AutoModelForCausalLM.from_pretrained(base)
    found, before = as_it_is(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(wf.WmdpFastWarning, match="the corpora last for 15 steps"):
        result = wf.sweep(
            model,
            forget=runs.corpus(runs.documents(1), "forget"),
            retain=runs.corpus(runs.documents(2), "retain"),
            over={"max_steps": [1, 40]},
            forget_tasks=str(base / "birds.jsonl"),
            retain_tasks=str(tmp_path / "trees.jsonl"),
            eval_options={"template": "mmlu"},
            output=tmp_path / "sweep",
            config=dataclasses.replace(CONFIG, epochs=1),
            tokenizer=tokenizers_zoo.tokenizer("llama3"),
            progress=False,
        )
    assert [run.steps for run in result.runs] == [1, 15]
    alone = runs.unlearn(base, dataclasses.replace(CONFIG, max_steps=1))
    assert result.runs[0].measures == {name: alone.metrics[0][name] for name in result.runs[0].measures}
    assert as_it_is(model) == found
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["mixtral", "gemma3_text"])
def test_methods_over_logits_train_it_on_packed_documents(family: str) -> None:
    config = NPOConfig(
        lora=LoRA(r=4, targets=("self_attn",)), learning_rate=1e-2, batch_size=2, max_steps=3, retain_loss="kl"
    )
    notes: list[str] = []
    result = runs.unlearn(runs.model(family), config, note=notes.append)
    assert not [note for note in notes if "padded" in note]
    assert result.metrics[0]["retain_kl"] == 0.0
    assert result.metrics[2]["retain_kl"] > 0.0
    still = runs.unlearn(runs.model(family), dataclasses.replace(config, lora=None))
    for name in ("forget_nll_before", "retain_nll_before"):
        assert result.findings.record["effects"][0][name] == still.findings.record["effects"][0][name]


def test_layers_that_are_run_again_drop_out_the_same() -> None:
    config = dataclasses.replace(NPO, lora=LoRA(r=4, dropout=0.3), batch_size=2, max_steps=3, save_adapter=True)
    results = [
        runs.unlearn(runs.model("llama"), dataclasses.replace(config, gradient_checkpointing=again))
        for again in (False, True)
    ]
    for name, tensor in results[0].tensors.items():
        assert torch.equal(results[1].tensors[name], tensor)


# What it is not for


def test_what_it_cannot_be_put_on_is_refused_in_a_line() -> None:
    def targets(family: str, *names: str) -> list[str]:
        found = lora_targets(decoder_of(runs.model(family)), (0, 1), LoRA(targets=names))
        return [one.name.removeprefix("layers.") for one in found]

    assert targets("llama", "o_proj") == ["0.self_attn.o_proj.weight", "1.self_attn.o_proj.weight"]
    assert len(targets("llama")) == 14
    assert len(targets("mixtral", "self_attn")) == 8
    for names in ((), ("mlp",), ("down_proj",)):
        with pytest.raises(ModelError, match=r"matrices of its experts in one tensor \(mlp.experts.*targets=self_attn"):
            targets("mixtral", *names)
    with pytest.raises(ModelError, match=r"fit no linear layer of layer 0, which has self_attn.q_proj, "):
        targets("llama", "down_projection")
    with pytest.raises(ModelError, match="the target w1 of lora fits no linear layer; layer 1 has self_attn"):
        targets("llama", "mlp", "w1")
    model = runs.model("llama")
    model.model.peft_config = {}
    with pytest.raises(ModelError, match="has an adapter already"):
        runs.unlearn(model, CONFIG)


def test_the_size_that_is_told_is_that_of_the_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    picked = [
        TrainedParameter(f"layers.{layer}.q_proj.weight", layer, torch.nn.Parameter(torch.zeros(40, 60)))
        for layer in range(3)
    ]
    first, *each = told(picked, LoRA(r=5))
    assert first == "training LoRA factors (r=5,alpha=10,dropout=0; 0.0 MB in float32) beside:"
    assert len(each) == 3
    monkeypatch.setattr(parameters, "_MOST_TOLD", 2)
    [line] = told(picked, LoRA(r=500))
    # 500 x (40 + 60) numbers of 4 bytes for each of three matrices.
    assert "; 0.6 MB in float32) beside: 3 parameters, from layers.0.q_proj.weight to layers.2" in line
    assert told(picked) == ["training: 3 parameters, 0.0 MB, from layers.0.q_proj.weight to layers.2.q_proj.weight"]


def test_without_peft_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"LoRA needs the package peft: pip install 'wmdp-fast\[peft\]'"):
        runs.unlearn(runs.model("llama"), CONFIG)


def test_gpt2s_transposed_matrices_are_merged_as_peft_does() -> None:
    made = [tiny_models.build("gpt2") for _ in range(2)]
    made[0].config.eos_token_id = 0
    config = dataclasses.replace(CONFIG, lora=LoRA(r=4, targets=("c_attn", "mlp")), save_adapter=True)
    result = runs.unlearn(made[0], config)
    theirs = peft.get_peft_model(
        made[1],
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "mlp.c_fc", "mlp.c_proj"], fan_in_fan_out=True),
    )
    peft.set_peft_model_state_dict(theirs, result.tensors)
    merged = theirs.merge_and_unload().state_dict()
    for name, tensor in made[0].state_dict().items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-6, atol=1e-6)
