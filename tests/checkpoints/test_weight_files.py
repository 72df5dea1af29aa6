"""What a folder holds is one question with one answer, and names and bytes in its files are not trusted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support import damage, tiny_models
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import VERDICTS
from wmdp_fast.checkpoints import tensor_file
from wmdp_fast.checkpoints.checkpoint import Checkpoint, apply_delta, write_checkpoint
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models import locate
from wmdp_fast.models.load import files_identity, load_model
from wmdp_fast.models.partial import load_first_layers
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.state import State, load_state, save_state

INDEX = "model.safetensors.index.json"

# By hand: WMDP_FAST_MUTATIONS=20000 pytest tests/checkpoints/test_weight_files.py
MUTATIONS = int(os.environ.get("WMDP_FAST_MUTATIONS", "150"))


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def saved(folder: Path, *, scale: float, shard_size: str = "1GB") -> Path:
    """A tiny llama whose weights are those of seed 0 times `scale`, with a tokenizer."""
    model = tiny_models.build("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    model.save_pretrained(folder, max_shard_size=shard_size)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """`model.safetensors` (scale 1) beside the index and shards of another model (scale 3)."""
    folder = saved(tmp_path / "base", scale=3.0, shard_size="30KB")
    assert (folder / INDEX).is_file()
    saved(tmp_path / "single", scale=1.0)
    shutil.copy(tmp_path / "single" / "model.safetensors", folder)
    return folder


def rewrite_index(folder: Path, change: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


# One rule


def test_of_two_sets_of_weights_all_read_the_one_that_transformers_reads(both: Path, tmp_path: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(both).state_dict()
    assert torch.equal(expected["lm_head.weight"], load_file(both / "model.safetensors")["lm_head.weight"])
    loaded = load_model(str(both), device="cpu")
    first = load_first_layers(str(both), 1, device="cpu")
    opened = Checkpoint.open(both)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())
    own = first.decoder.model.state_dict()
    assert all(torch.equal(tensor, expected[f"model.{name}"]) for name, tensor in own.items() if name != "norm.weight")
    assert set(opened.shards.values()) == {"model.safetensors"}

    name = "model.layers.0.mlp.down_proj.weight"
    changed = {name: torch.full_like(expected[name], 0.5)}
    (tmp_path / "new").mkdir()
    write_checkpoint(opened, changed, tmp_path / "new")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "new").state_dict()
    assert all(torch.equal(written[key], {**expected, **changed}[key]) for key in expected)
    assert not (tmp_path / "new" / INDEX).exists()
    assert sorted(path.name for path in (tmp_path / "new").glob("*.safetensors")) == ["model.safetensors"]


@VERDICTS
def test_a_run_of_unlearning_changes_the_weights_that_evaluation_reads(tmp_path: Path) -> None:
    base = runs.saved_model(tmp_path / "base", "llama", shard_size="12KB")
    other = runs.model("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", base)
    config = RMUConfig(layer_id=2, steering_coeff=2.0, alpha=50.0, learning_rate=1e-3, batch_size=2, max_steps=2)
    result = runs.unlearn(str(base), config, output=tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(result.tensors)
    apply_delta(base, tmp_path / "out", tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], after[name]) for name in after)


def test_an_index_older_than_its_shards_is_asked_for_their_names_only(tmp_path: Path) -> None:
    folder = saved(tmp_path / "base", scale=1.0, shard_size="30KB")
    shards = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    rewrite_index(folder, lambda index: index["weight_map"].update(dict.fromkeys(index["weight_map"], shards[0])))
    rewrite_index(folder, lambda index: index["weight_map"].update({f"x{n}": name for n, name in enumerate(shards)}))
    # And a tensor in two shards: transformers takes the later one's.
    name = "model.layers.0.self_attn.q_proj.weight"
    home = Checkpoint.open(folder).shards[name]
    assert home != shards[-1]
    last = load_file(folder / shards[-1])
    save_file({**last, name: torch.ones(32, 32)}, folder / shards[-1], metadata={"format": "pt"})
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder).state_dict()[name], torch.ones(32, 32))

    opened = Checkpoint.open(folder)
    assert opened.shards[name] == shards[-1]
    (tmp_path / "new").mkdir()
    write_checkpoint(opened, {name: torch.zeros(32, 32)}, tmp_path / "new")
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "new").state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == [name]


def test_a_file_that_the_configuration_names_comes_first(both: Path) -> None:
    config = json.loads((both / "config.json").read_text())
    save_file({k: v + 1 for k, v in load_file(both / "model.safetensors").items()}, both / "own.safetensors")
    (both / "config.json").write_text(json.dumps({**config, "transformers_weights": "own.safetensors"}))
    expected = AutoModelForCausalLM.from_pretrained(both).state_dict()
    assert torch.equal(
        load_model(str(both), device="cpu").model.state_dict()["lm_head.weight"], expected["lm_head.weight"]
    )
    assert set(Checkpoint.open(both).shards.values()) == {"own.safetensors"}
    for name in ("adapter_model.bin", "../own.safetensors", 5):
        (both / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
        for read in (load_model, Checkpoint.open):
            with pytest.raises(ModelError, match="transformers_weights"):
                read(both if read == Checkpoint.open else str(both))


def test_the_files_of_another_set_do_not_make_it_another_model(both: Path) -> None:
    loaded = load_model(str(both), device="cpu")
    before = files_identity(loaded)
    next(both.glob("model-*.safetensors")).unlink()
    assert files_identity(loaded) == before
    os.utime(both / "model.safetensors", ns=(1, 1))
    assert files_identity(loaded) != before


@pytest.mark.parametrize(
    "read", [lambda f: load_model(str(f)), lambda f: load_first_layers(str(f), 1), Checkpoint.open]
)
def test_what_transformers_reads_unasked_is_refused(both: Path, read: Any) -> None:
    (both / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "owner/base"}')
    with pytest.raises(ModelError, match=r"a model and a PEFT adapter .*remove adapter_config\.json, or .*--peft"):
        read(both)
    (both / "adapter_config.json").unlink()
    (both / "shard-00001-model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="distributed checkpoint"):
        read(both)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "base", scale=1.0, shard_size="30KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    for read in (
        lambda: load_model(str(folder)),
        lambda: load_first_layers(str(folder), 1),
        lambda: Checkpoint.open(folder),
    ):
        with pytest.raises(ModelError, match=f"lacks {shard.name}; copy or download the rest"):
            read()


# Names in an index

HOSTILE = [
    "../../victim.safetensors", "/tmp/victim.safetensors", "sub/victim.safetensors", "..\\victim.safetensors",
    "pytorch_model.bin", "weights.pt", ".safetensors", "delta.safetensors", "a\0.safetensors", "a\n.safetensors", "", 5,
    None, ["model.safetensors"],
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_that_names_anything_but_files_beside_it_is_refused_by_all(tmp_path: Path, name: Any) -> None:
    folder = saved(tmp_path / "a" / "b" / "base", scale=1.0, shard_size="30KB")
    victim = tmp_path / "a" / "victim.safetensors"
    shutil.copy(next(folder.glob("model-*.safetensors")), victim)
    torch.save(Bomb(tmp_path / "exploded"), folder / "pytorch_model.bin")
    before = victim.read_bytes()
    rewrite_index(folder, lambda index: index["weight_map"].update({"model.norm.weight": name}))
    for read in (
        lambda: load_model(str(folder)),
        lambda: load_first_layers(str(folder), 1),
        lambda: Checkpoint.open(folder),
        lambda: apply_delta(folder, delta_of(tmp_path, torch.float32), folder.parent / "out"),
    ):
        with pytest.raises(ModelError, match=r"'model\.norm\.weight' is in .* only files in the same folder"):
            read()
    assert victim.read_bytes() == before
    assert not (tmp_path / "exploded").exists()


def test_an_index_on_the_hub_is_refused_before_transformers_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    storage = tmp_path / "models--owner--model"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(commit)
    folder = saved(storage / "snapshots" / commit, scale=1.0, shard_size="30KB")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert locate.locate_model("owner/model", revision=None).commit == commit
    rewrite_index(folder, lambda index: index["weight_map"].update({"model.norm.weight": "x.bin"}))
    with pytest.raises(ModelError, match="only files in the same folder"):
        load_model("owner/model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="a model and a PEFT adapter"):
        load_model("owner/model")


@pytest.mark.parametrize(
    "content", ["[" * 200_000, "{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "\xff", "{"]
)
def test_a_damaged_index_is_named(tmp_path: Path, content: str) -> None:
    folder = saved(tmp_path / "base", scale=1.0, shard_size="30KB")
    (folder / INDEX).write_text(content, encoding="latin-1")
    for read in (lambda: load_model(str(folder)), lambda: Checkpoint.open(folder)):
        with pytest.raises(ModelError, match=f"{INDEX} is damaged"):
            read()


def test_files_that_are_no_folder_of_a_model_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"x\.gguf is a model of llama\.cpp: .*--engine openai .*save_pretrained"):
        load_model(str(tmp_path / "x.gguf"))
    with pytest.raises(ModelError, match=r"has no config\.json, but x\.gguf"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    with pytest.raises(ModelError, match=rf"is a PEFT adapter.* 'owner/base', .*\(--peft {tmp_path}\)"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match="is a file; pass the folder"):
        load_model(str(tmp_path / "adapter_config.json"))


# Headers and checksums


def raw_file(path: Path, header: str, body: bytes) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + body)
    return path


def entry(shape: str, begin: int, end: int, dtype: str = "F32") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


@pytest.mark.parametrize(
    "table",
    [
        f'"a":{entry("[4]", -16, 0)}',
        f'"a":{entry("[2]", 0, 8)},"b":{entry("[2]", 0, 8)}',
        f'"a":{entry("[2]", 8, 16)}',
        f'"a":{entry("[2]", 0, 8)}',
        f'"a":{entry("[3]", 0, 16)}',
        f'"a":{entry("[-4]", 0, 16)}',
        f'"a":{entry("[1e0,4]", 0, 16)}',
        f'"a":{entry("[1099511627776,1099511627776]", 0, 16)}',
        f'"a":{entry("[4]", 0, 16)},"a":{entry("[4]", 0, 16, "I32")}',
        f'"a":{entry("[4]", 0, 16)},"__metadata__":{{"x":1}}',
        f'"a":{entry("[4]", 0, 16)},"__metadata__":[]',
        f'"a":{"[" * 200_000}',
        '"a":[]',
    ],
)
def test_a_header_whose_places_do_not_fill_the_file_is_refused(tmp_path: Path, table: str) -> None:
    path = raw_file(tmp_path / "x.safetensors", f"{{{table}}}", bytes(16))
    for read in (tensor_file.read_header, tensor_file.read_tensors):
        with pytest.raises(ModelError, match=r"x\.safetensors is (no safetensors file, or )?damaged"):
            read(path)


def delta_of(folder: Path, dtype: torch.dtype, base: Path | None = None) -> Path:
    path = folder / "a.delta.safetensors"
    tensors = {"model.norm.weight": torch.full((32,), 0.25, dtype=dtype)}
    sha = "0" * 64 if base is None else Checkpoint.open(base).digest(tensors)
    tensor_file.write_tensors(path, tensors, {"base_tensors_sha256": sha})
    return path


def test_a_delta_of_another_type_is_rounded_to_the_bases(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", scale=1.0)
    apply_delta(base, delta_of(tmp_path, torch.bfloat16, base), tmp_path / "out")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(after.pop("model.norm.weight"), torch.full((32,), 0.25))
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_a_delta_without_a_checksum_is_said_to_have_none(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", scale=1.0)
    path = delta_of(tmp_path, torch.float32, base)
    tensors, metadata = tensor_file.read_tensors(path)
    save_file(tensors, path, metadata=metadata)
    with pytest.warns(WmdpFastWarning, match="no checksum.*an older version wrote it"):
        apply_delta(base, path, tmp_path / "out")
    with pytest.raises(ModelError, match="no checksum"):
        tensor_file.read_tensors(path)


def mutated(content: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    kind = rng.choice([damage.flip, damage.flip, damage.flip, damage.cut, damage.delete, one_bit])
    return kind(content, rng)


def one_bit(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def test_a_changed_byte_in_a_delta_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", scale=1.0)
    path = delta_of(tmp_path, torch.float32, base)
    content, (tensors, metadata) = path.read_bytes(), tensor_file.read_tensors(path)
    refused = 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(content, seed))
        try:
            found, described = tensor_file.read_tensors(path)
        except ModelError:
            refused += 1
            continue
        assert described == metadata
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert refused > MUTATIONS / 2


def test_a_changed_byte_in_a_state_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {"weights.a": torch.randn(4, 4), "first.a": torch.randn(4, 4), "weights.b": torch.randn(3).bfloat16()}
    state = State(7, tensors, [6.5], [{"step": 5, "scores": {}}], best_step=5, seconds=1.5)
    save_state(tmp_path, state, {"seed": 3})
    path = tmp_path / "state.safetensors"
    content = path.read_bytes()
    refused = 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(content, seed))
        try:
            found = load_state(tmp_path, {"seed": 3})
        except ModelError:
            refused += 1
            continue
        assert found is not None
        assert {**vars(found), "tensors": {}} == {**vars(state), "tensors": {}}
        assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    assert refused > MUTATIONS / 2


def test_a_damaged_header_is_read_as_the_library_reads_it_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    save_file({"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.arange(3)}, path, {"format": "pt"})
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for seed in range(MUTATIONS):
        rng = random.Random(seed)
        path.write_bytes(rng.choice([damage.flip, one_bit, damage.delete])(content[:header], rng) + content[header:])
        theirs = None
        with contextlib.suppress(SafetensorError), safe_open(path, "pt") as opened:
            theirs = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (it is no mapping)
        try:
            ours = tensor_file.read_header(path).places
        except ModelError:
            continue
        assert theirs is not None
        assert ours.keys() == theirs.keys()
        for key, place in ours.items():
            assert place.shape == tuple(theirs[key].shape)
            assert tensor_file.read_bytes(path, place) == theirs[key].contiguous().view(torch.uint8).numpy().tobytes()


def test_a_file_is_replaced_and_never_written_into(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for link in (os.link, os.symlink):
        target = tmp_path / link.__name__
        link(victim, target)
        tensor_file.write_tensors(target, {"a": torch.ones(2)}, {})
        assert victim.read_bytes() == b"precious"
        assert torch.equal(tensor_file.read_tensors(target)[0]["a"], torch.ones(2))


def test_an_output_that_is_a_dangling_link_is_refused_at_once(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", scale=1.0)
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"is a link to .*nowhere, which does not exist"):
        apply_delta(base, delta_of(tmp_path, torch.float32, base), tmp_path / "out")
