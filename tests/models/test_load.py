"""Loading models: what is recorded about them, what is refused, and that evaluating leaves no trace."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import wmdp_fast
from tests.support import tiny_models
from wmdp_fast.exceptions import DataUnavailableError, ModelError, TokenizerError, WmdpFastWarning
from wmdp_fast.models.load import evaluation_mode, load_model, parse_device, wrap_model
from wmdp_fast.models.partial import load_first_layers
from wmdp_fast.models.reading import warnings_as_ours
from wmdp_fast.models.tokenizer_only import load_tokenizer, max_length


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny model in bfloat16 with its tokenizer."""
    tiny_models.build("llama", torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_models.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_is_loaded_ready_for_scoring(folder: Path) -> None:
    loaded = load_model(str(folder), device="cpu")
    assert (loaded.name, loaded.path, loaded.revision, loaded.sha) == (str(folder), folder, None, None)
    assert (loaded.dtype, loaded.device) == (torch.bfloat16, torch.device("cpu"))
    assert loaded.num_parameters == loaded.model.num_parameters()
    assert loaded.max_length == 128
    assert loaded.prefix_token_id == 1
    assert loaded.seconds > 0
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    original = dict(tiny_models.build("llama", torch.bfloat16).named_parameters())
    assert all(torch.equal(parameter, original[name]) for name, parameter in loaded.model.named_parameters())


@pytest.mark.parametrize("dtype", ["float32", torch.float16])
def test_dtype_can_be_chosen(folder: Path, dtype: Any) -> None:
    loaded = load_model(str(folder), dtype=dtype, device="cpu")
    assert loaded.dtype == {"float32": torch.float32}.get(dtype, dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {loaded.dtype}


@pytest.mark.parametrize(("native", "dtype", "warned"), [(False, "auto", 1), (False, "bfloat16", 0), (True, "auto", 0)])
def test_a_dtype_that_the_cpu_emulates_gets_a_warning_unless_asked_for(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    native: bool,
    dtype: str,
    warned: int,
) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    load_model(str(folder), dtype=dtype, device="cpu")
    messages = [str(warning.message) for warning in recwarn]
    assert sum("this CPU emulates bfloat16" in message for message in messages) == warned


def test_another_tokenizer_can_be_given(folder: Path, tmp_path: Path) -> None:
    other = tiny_models.tokenizer()
    assert load_model(str(folder), dtype="bfloat16", tokenizer=other, device="cpu").tokenizer is other
    other.save_pretrained(tmp_path / "tokenizer")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    loaded = load_model(str(folder), dtype="bfloat16", tokenizer=str(tmp_path / "tokenizer"), device="cpu")
    assert loaded.tokenizer.encode("Answer: A") == other.encode("Answer: A")


@pytest.mark.parametrize("dtype", ["int8", "double", torch.float64])
def test_a_strange_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype must be auto, float32, bfloat16, float16, not"):
        load_model("anything", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta"])
def test_a_strange_device_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"device must be auto, cpu, cuda or cuda:N, not {device}"):
        load_model("anything", device=device)


def test_cuda_is_missed_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse_device("auto") == torch.device("cpu")
    with pytest.raises(ModelError, match=r"device cuda:1: .*; use device cpu"):
        load_model("anything", device="cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_device("auto") == torch.device("cuda")
    assert parse_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelError, match="device cuda:2: there are only 2 CUDA devices, cuda:0 to cuda:1"):
        parse_device("cuda:2")


# What cannot be loaded


def without(folder: Path, part: str) -> None:
    """Takes the weights whose names contain `part` out of a model's file."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["lm_head", "embed_tokens", "layers.1.mlp.up_proj", "norm", "weight"])
def test_missing_weights_are_an_error_that_names_them(folder: Path, part: str) -> None:
    without(folder, part)
    with pytest.raises(ModelError, match=rf"lacks weights of Llama.*, which would be random: .*{part}"):
        load_model(str(folder), device="cpu", dtype="float32")
    if part != "lm_head":
        with pytest.raises(ModelError, match=rf"lacks weights of LlamaModel, which would be random: .*{part}"):
            load_first_layers(str(folder), 2, dtype="float32", device="cpu")


def test_the_first_layers_need_no_more_than_their_own_weights(folder: Path) -> None:
    without(folder, "layers.1.self_attn.q_proj")
    load_first_layers(str(folder), 1, dtype="float32", device="cpu")
    with pytest.raises(ModelError, match=r"lacks weights .*: layers\.1\.self_attn\.q_proj\.weight\. Copy"):
        load_first_layers(str(folder), 2, dtype="float32", device="cpu")


def test_weights_may_be_missing_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    without(folder, "lm_head")
    (tmp_path / "q.jsonl").write_text('{"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 1}\n')
    arguments: dict[str, Any] = {"tasks": tmp_path / "q.jsonl", "dtype": "float32", "device": "cpu", "progress": False}
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        wmdp_fast.evaluate(folder, **arguments)
    with pytest.warns(WmdpFastWarning, match=r"weights are missing and random, so .*: lm_head\.weight"):
        result = wmdp_fast.evaluate(folder, **arguments, allow_missing=True)
    assert "lm_head.weight" in result.to_json()["wmdp_fast"]["warnings"][0]


@pytest.mark.parametrize("family", tiny_models.TRIE_FAMILIES + tuple(tiny_models.PADDED_FAMILIES))
@pytest.mark.parametrize("tied", [False, True])
def test_nothing_is_missing_from_what_transformers_saved(tmp_path: Path, family: str, tied: bool) -> None:
    config: Any = tiny_models.config(family)
    config.tie_word_embeddings = tied
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    notes = load_model(str(tmp_path), device="cpu", dtype="float32").warnings
    # What some versions of transformers do to Gemma 2.
    assert [note for note in notes if "attention is eager" not in note] == []


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    tiny_models.build("mixtral").save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    without(tmp_path, "layers.1.block_sparse_moe.experts.3.w1")
    with pytest.raises(
        ModelError, match=r"lacks parts of model\.layers\.1\.mlp\.experts\.gate_up_proj, or has them in"
    ):
        load_model(str(tmp_path), device="cpu", dtype="float32")


def test_weights_of_another_shape_are_an_error_and_surplus_is_said(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "foo.bar": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(WmdpFastWarning, match=r"no place; they are not used: foo\.bar"):
        loaded = load_model(str(folder), device="cpu", dtype="float32")
    assert loaded.warnings == (
        "the checkpoint has weights for which the model has no place; they are not used: foo.bar",
    )
    save_file({**weights, "model.norm.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    for read in (lambda: load_model(str(folder)), lambda: load_first_layers(str(folder), 1)):
        with pytest.raises(ModelError, match=r"weights do not fit config\.json: .*norm\.weight is 2, where .* has 32"):
            read()


def test_what_others_have_left_unclosed_is_not_said_of_the_model() -> None:
    said: list[str] = []

    def load() -> None:
        with warnings_as_ours(said):
            warnings.warn("unclosed stream", ResourceWarning, stacklevel=1)
            warnings.warn("an odd weight", UserWarning, stacklevel=1)

    with pytest.warns(ResourceWarning, match="unclosed stream"):
        load()
    assert said == ["an odd weight"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_refused_and_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "exploded"), folder / name)
    with pytest.raises(ModelError, match=rf"has no model.safetensors .* but {name}: .*save_pretrained"):
        load_model(str(folder), device="cpu")
    assert not (tmp_path / "exploded").exists()


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_folder_without_weights_or_configuration_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"{folder} has no model.safetensors or model.safetensors.index.json$"):
        load_model(str(folder), device="cpu")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=f"{folder} has no config.json; pass the folder that `save_pretrained` wrote"):
        load_model(str(folder), device="cpu")


def test_damaged_weights_are_an_error_that_names_the_model(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"{folder} cannot be loaded"):
        load_model(str(folder), device="cpu")


def test_a_tokenizer_that_is_missing_is_an_error_that_names_it(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    # transformers 5.4 makes one that knows no words: the next test.
    what = "(; .*: copy the tokenizer's files|: it knows only special tokens, as if its files were missing; copy)"
    with pytest.raises(TokenizerError, match=f"the tokenizer of {folder} cannot be loaded{what}"):
        load_model(str(folder), device="cpu")


def test_a_tokenizer_that_knows_no_words_is_an_error(tmp_path: Path) -> None:
    """What transformers 5.4 makes of a Llama without a tokenizer."""
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    nothing = tokenizers.Tokenizer(tokenizers.models.BPE({"<unk>": 0, "<s>": 1, "</s>": 2}, []))
    PreTrainedTokenizerFast(tokenizer_object=nothing, **specials).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=f"the tokenizer of {tmp_path} cannot be loaded: it knows only special"):
        load_tokenizer(str(tmp_path))


def test_remote_code_is_refused_unless_asked_for(folder: Path, tmp_path: Path) -> None:
    (folder / "code.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )
    config = LlamaConfig.from_pretrained(folder).to_dict()
    config["auto_map"] = {"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.MyModel"}
    LlamaConfig(**config).to_json_file(folder / "config.json", use_diff=False)
    text = (folder / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "mine"')
    (folder / "config.json").write_text(text)
    with pytest.raises((ModelError, TokenizerError), match="trust_remote_code"):
        load_model(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()
    loaded = load_model(str(folder), dtype="bfloat16", device="cpu", trust_remote_code=True)
    assert type(loaded.model).__name__ == "MyModel"
    assert (tmp_path / "ran").exists()


# The hub


def test_a_name_that_is_neither_folder_nor_repository_is_refused() -> None:
    with pytest.raises(ModelError, match=r"\./no/such/folder is neither a folder nor a name on the hub"):
        load_model("./no/such/folder", device="cpu")


def test_a_mistyped_folder_is_said_at_once_with_the_one_that_may_be_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "modle.txt").touch()
    # A path is no name on the hub, which is not asked.
    monkeypatch.setattr("wmdp_fast.models.locate.why_unreachable", lambda _: pytest.fail("asked the hub"))
    for name in ("./modle", f"{tmp_path}/modle", "~/no/modle", "modle/"):
        with pytest.raises(ModelError, match="is neither a folder nor a name on the hub such as") as error:
            load_model(name, device="cpu")
        assert ("; did you mean " in str(error.value)) == ("~" not in name)
    with pytest.raises(ModelError, match=r"\./modle is neither .*; did you mean model\?"):
        load_model("./modle", device="cpu")


def test_a_mistyped_tokenizer_is_said_to_be_no_folder(folder: Path) -> None:
    with pytest.raises(TokenizerError, match=r"the tokenizer \./tok is neither a folder nor a name on the hub"):
        load_model(str(folder), tokenizer="./tok", device="cpu")


def test_without_a_network_a_name_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", lambda *_, **__: pytest.fail("asked again and again"))
    with pytest.raises(DataUnavailableError) as error:
        load_model("modle", device="cpu")
    said = str(error.value)
    assert "http://127.0.0.1:9 cannot be reached (Connection refused): check the connection" in said
    assert said.endswith("; did you mean model?")
    assert "\n" not in said
    assert not caplog.records


def test_offline_the_message_says_how_to_get_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataUnavailableError, match=r"owner/model at revision v1 is neither .* unset HF_HUB_OFFLINE"):
        load_model("owner/model", revision="v1", device="cpu")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "is gated: accept its license at https://.*/owner/model and .* HF_TOKEN"),
        (RevisionNotFoundError, "has no revision v1: choose one of https://"),
        (RepositoryNotFoundError, "is no folder here, and not at https://.* check the name, and .* HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
) -> None:
    def refuse(*args: Any, **arguments: Any) -> str:  # noqa: ARG001
        raise error("refused", response=Response())  # type: ignore[call-arg]

    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", refuse)
    monkeypatch.setattr("wmdp_fast.models.locate.why_unreachable", lambda _address: None)
    with pytest.raises(DataUnavailableError, match=f"owner/model {message}"):
        load_model("owner/model", revision="v1", device="cpu")


class Response:
    """As much of an HTTP response as the hub's errors look at."""

    status_code = 403
    headers: dict[str, str] = {}  # noqa: RUF012
    request = None


def test_a_cached_model_is_loaded_offline_at_its_commit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    storage = tmp_path / "hub" / "models--owner--model"
    (storage / "snapshots").mkdir(parents=True)
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(commit)
    folder.rename(storage / "snapshots" / commit)
    # The variables of these names were read when huggingface_hub was imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = load_model("owner/model", device="cpu")
    assert (loaded.name, loaded.sha, loaded.path) == ("owner/model", commit, storage / "snapshots" / commit)
    assert loaded.tokenizer.decode([1]) == "<s>"


# Adapters


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'wmdp-fast[peft]'")
    model = tiny_models.build("llama")
    model.resize_token_embeddings(len(tiny_models.tokenizer()))
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


CUT = "the tokenizer has 447 tokens and the model 640; as in lm-eval, the others are cut off where an adapter is put on"


def test_an_adapter_is_put_on_the_model_but_not_merged(folder: Path, adapter: Path) -> None:
    plain = load_model(str(folder), dtype="float32", device="cpu")
    with pytest.warns(WmdpFastWarning, match=CUT):
        loaded = load_model(str(folder), dtype="float32", device="cpu", peft=str(adapter))
    assert loaded.peft == str(adapter)
    assert type(loaded.model).__name__ == "PeftModel"
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    # As lm-eval does it, the embedding has the tokenizer's size.
    size = len(loaded.tokenizer)
    ids = torch.tensor([[1, 2, 3]])
    logits = loaded.model(ids).logits
    assert logits.shape == (1, 3, size)
    assert not torch.allclose(logits, plain.model(ids).logits[..., :size])
    with loaded.model.disable_adapter():
        torch.testing.assert_close(loaded.model(ids).logits, plain.model(ids).logits[..., :size])


ADAPTERS: dict[str, tuple[dict[str, Any], int | None]] = {
    "lora": ({}, None),
    "head": ({"modules_to_save": ["lm_head"]}, None),
    "embedding and head": ({"modules_to_save": ["lm_head", "embed_tokens"]}, None),
    "lora of the head": ({"target_modules": ["q_proj", "lm_head"]}, None),
    "lora of the embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, None),
    "embedding and head of the tokenizer's size": ({"modules_to_save": ["lm_head", "embed_tokens"]}, 447),
    "embedding and head of another size": ({"modules_to_save": ["lm_head", "embed_tokens"]}, 500),
}
# With these lm-eval cuts the model down to the tokenizer, and then they do not fit.
NOT_IN_LM_EVAL = [name for name in ADAPTERS if name not in ("lora", "embedding and head of the tokenizer's size")]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_gives_what_it_was_trained_to_and_what_lm_eval_gives(
    folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder, kind: str
) -> None:
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'wmdp-fast[peft]'")
    settings, size = ADAPTERS[kind]
    model = tiny_models.build("llama")
    model.save_pretrained(folder)
    if size is not None:
        model.resize_token_embeddings(size)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, init_lora_weights=False, **{"target_modules": ["q_proj"], **settings})
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[1, 2, 3]])
    recwarn.clear()
    loaded = load_model(str(folder), device="cpu", peft=str(tmp_path / "adapter"))
    # PEFT 0.18 says of every model with tied embeddings what other programs may make of the adapter.
    told = [str(warning.message) for warning in recwarn if "tie_word_embeddings" not in str(warning.message)]
    # Where the adapter brings no rows of its own, others' are lost, in lm-eval too.
    assert [CUT in one for one in told] == ([True] if kind == "lora" else [])
    assert [CUT in one for one in loaded.warnings if "tie_word" not in one] == ([True] if kind == "lora" else [])
    with torch.no_grad():
        ours, own = loaded.model(ids).logits, adapted(ids).logits
        torch.testing.assert_close(ours, own[..., : ours.shape[-1]])
        if kind == "lora":
            assert ours.shape[-1] == len(loaded.tokenizer)
        else:
            assert ours.shape == own.shape
        pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'wmdp-fast[lm-eval]'")
        from lm_eval.models.huggingface import HFLM

        def theirs() -> torch.Tensor:
            lm = HFLM(pretrained=str(folder), peft=str(tmp_path / "adapter"), device="cpu", dtype="float32")
            logits: torch.Tensor = lm.model(ids).logits
            return logits

        if kind in NOT_IN_LM_EVAL:
            with pytest.raises(RuntimeError, match="size mismatch"):
                theirs()
        else:
            torch.testing.assert_close(ours, theirs())


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_a_tokenizer_larger_than_the_model_is_met_as_by_lm_eval_and_said(folder: Path, adapter: Path) -> None:
    small = LlamaConfig(**{**tiny_models.config("llama").to_dict(), "vocab_size": 440})  # type: ignore[attr-defined]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(small).save_pretrained(folder)
    with pytest.warns(WmdpFastWarning, match="has 447 tokens and the model 440; as in lm-eval, the others got"):
        loaded = load_model(str(folder), device="cpu", dtype="float32", peft=str(adapter))
    assert "447 tokens" in loaded.warnings[0]
    with pytest.warns(WmdpFastWarning, match="has 447 tokens"):
        again = load_model(str(folder), device="cpu", dtype="float32", peft=str(adapter))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded.model(ids).logits, again.model(ids).logits)
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'wmdp-fast[lm-eval]'")
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(folder), peft=str(adapter), device="cpu", dtype="float32").model(ids).logits
    torch.testing.assert_close(loaded.model(ids).logits, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.filterwarnings(f"ignore:.*{CUT}:wmdp_fast.exceptions.WmdpFastWarning")
def test_an_adapter_that_lacks_weights_is_refused_and_surplus_is_said(folder: Path, adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.1" not in k}, adapter / "adapter_model.safetensors")
    with pytest.raises(
        ModelError, match=r"lacks weights, which would be random .*layers\.1\.self_attn\.q_proj\.lora_A"
    ):
        load_model(str(folder), device="cpu", peft=str(adapter))
    more = {name.replace("layers.1", "layers.7"): tensor.clone() for name, tensor in weights.items()}
    save_file({**weights, **more}, adapter / "adapter_model.safetensors")
    with pytest.warns(WmdpFastWarning, match=r"no place; they are not used: .*layers\.7\.self_attn\.q_proj"):
        loaded = load_model(str(folder), device="cpu", dtype="float32", peft=str(adapter))
    assert [("layers.7" in one, CUT in one) for one in loaded.warnings] == [(False, True), (True, False)]


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.parametrize(
    "config",
    [
        "[" * 200_000,
        "[]",
        "{}",
        '{"peft_type": "NOPE"}',
        '{"peft_type": "LORA", "r": "x", "target_modules": 5}',
        "\xff",
    ],
)
def test_a_broken_adapter_is_one_line(folder: Path, adapter: Path, config: str) -> None:
    (adapter / "adapter_config.json").write_text(config, encoding="latin-1")
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), device="cpu", dtype="float32", peft=str(adapter))
    assert str(adapter) in str(caught.value)
    assert "\n" not in str(caught.value)
    (adapter / "adapter_model.safetensors").write_bytes(b"12345678")
    with pytest.raises(ModelError, match=str(adapter)):
        load_model(str(folder), device="cpu", dtype="float32", peft=str(adapter))


def test_a_pickled_adapter_is_refused(folder: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "exploded"), adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors, but adapter_model\.bin"):
        load_model(str(folder), device="cpu", peft=str(adapter))
    assert not (tmp_path / "exploded").exists()


def test_without_peft_the_message_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"adapter some/adapter needs .* pip install 'wmdp-fast\[peft\]'"):
        load_model(str(folder), device="cpu", peft="some/adapter")


# lm-eval's rules


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_limits_and_prefix_token_are_lm_evals(family: str) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'wmdp-fast[lm-eval]'")
    from lm_eval.models.huggingface import HFLM

    loaded = tiny_models.loaded(family)
    lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer)
    assert loaded.max_length == lm.max_length
    assert loaded.prefix_token_id == lm.prefix_token_id


def test_the_limit_comes_from_the_text_model_then_the_tokenizer_then_2048() -> None:
    tokenizer = tiny_models.tokenizer()
    config = AutoConfig.for_model("mamba")
    assert max_length(config, tokenizer) == 2048
    config.text_config = LlamaConfig(max_position_embeddings=77)
    config.n_ctx = 55
    assert max_length(config, tokenizer) == 77
    config.text_config = None
    assert max_length(config, tokenizer) == 55
    config.n_ctx = None
    limited = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, model_max_length=33)
    assert max_length(config, limited) == 33


def test_a_tokenizer_without_bos_and_eos_is_refused() -> None:
    tokenizer = tiny_models.tokenizer()
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(TokenizerError, match="neither a BOS nor an EOS token"):
        wrap_model(tiny_models.loaded("llama").model, bare)
    only_eos = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    assert wrap_model(tiny_models.loaded("llama").model, only_eos).prefix_token_id == 2


# Models in memory


def test_wrapping_leaves_a_model_as_it_is() -> None:
    model = tiny_models.build("llama").train()
    loaded = wrap_model(model, tiny_models.tokenizer())
    assert loaded.model is model
    assert model.training
    assert loaded.name == "LlamaForCausalLM"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_something_else_than_a_language_model_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear is not a model of transformers: it has no config"):
        wrap_model(torch.nn.Linear(2, 2), tiny_models.tokenizer())


def test_evaluation_mode_leaves_no_trace_even_after_an_error() -> None:
    model = tiny_models.build("gpt2").train()
    model.transformer.h[1].eval()
    flags = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(3)
    state = torch.get_rng_state()

    def fail() -> None:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            torch.rand(10)
            # Not an inference tensor: those cannot be used in training afterwards.
            assert not torch.rand(1).is_inference()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
