"""How many layers two models seem to share: by their tensors' bytes, in one file or many, with deltas and adapters."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wmdp_fast.checkpoints.lower_layers import StoredWeights, layers_in_common, stored_weights

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

LAYERS = 5
NAMES = ["model.embed_tokens.weight", "model.norm.weight"]
NAMES += [f"model.layers.{index}.mlp.{name}.weight" for index in range(LAYERS) for name in ("up", "down")]


def write(folder: Path, changed: dict[str, int] | None = None) -> Path:
    """A checkpoint; of the named tensors one number, given by its place, is another one."""
    folder.mkdir()
    tensors = {name: torch.full((70, 70), float(place)) for place, name in enumerate(NAMES)}
    for name, at in (changed or {}).items():
        tensors[name].view(-1)[at] += 1
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def found(one: Path | str, other: Path | str, *adapters: Path) -> int:
    both = [
        stored_weights(model, peft=peft) for model, peft in zip((one, other), [*adapters, None, None], strict=False)
    ]
    assert all(isinstance(one, StoredWeights) and one.num_layers == LAYERS for one in both)
    return layers_in_common(*both)


@given(changed=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0, 1023, 70 * 70 - 1]), max_size=4))
def test_it_is_the_lowest_layer_that_differs(changed: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    layers = [int(name.split(".")[2]) if ".layers." in name else 0 for name in changed]
    assert found(write(folder / "one"), write(folder / "other", changed)) == min([*layers, LAYERS - 1])


def test_files_that_are_one_and_copies_in_shards(tmp_path: Path) -> None:
    one = write(tmp_path / "one")
    linked = write(tmp_path / "linked")
    (linked / "model.safetensors").unlink()
    os.link(one / "model.safetensors", linked / "model.safetensors")
    assert found(one, linked) == found(one, one) == LAYERS - 1
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    tensors = load_file(one / "model.safetensors")
    tensors["model.layers.3.mlp.up.weight"] += 1
    shards = {f"model-{part}-of-2.safetensors": list(tensors)[part - 1 :: 2] for part in (1, 2)}
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, sharded / shard)
    weight_map = ", ".join(f'"{name}": "{shard}"' for shard, names in shards.items() for name in names)
    (sharded / "model.safetensors.index.json").write_text(f'{{"metadata": {{}}, "weight_map": {{{weight_map}}}}}')
    (sharded / "config.json").write_text("{}")
    assert found(one, sharded) == 3


def test_another_type_or_a_tensor_more_is_a_difference(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other")
    tensors = load_file(one / "model.safetensors")
    save_file(tensors | {NAMES[-3]: tensors[NAMES[-3]].bfloat16()}, other / "model.safetensors")
    assert found(one, other) == LAYERS - 2
    save_file(tensors | {"model.layers.1.mlp.bias": torch.zeros(1)}, other / "model.safetensors")
    assert found(one, other) == 1
    save_file(tensors | {"model.bias": torch.zeros(1)}, other / "model.safetensors")
    assert found(one, other) == 0


def test_of_deltas_and_adapters_it_is_the_lowest_layer_that_they_have_something_for(tmp_path: Path) -> None:
    base = write(tmp_path / "base")
    for name, layers in (("upper", (3, 4)), ("lower", (1,))):
        (tmp_path / name).mkdir()
        changed = {f"model.layers.{index}.mlp.up.weight": torch.ones(70, 70) for index in layers}
        save_file(changed, tmp_path / name / "delta.safetensors")
        put_on = {f"base_model.model.{key}".replace("weight", "lora_A.weight"): one for key, one in changed.items()}
        save_file(put_on, tmp_path / name / "adapter_model.safetensors")
        (tmp_path / name / "adapter_config.json").write_text("{}")
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    assert found(base, f"{base}+{upper}") == 3
    assert found(f"{base}+{upper}", f"{base}+{lower}") == 1
    # What an adapter does with equal weights depends on its settings too.
    assert found(base, base, upper, upper) == found(base, base, upper) == 3
    assert found(base, base, upper, lower) == 1
    save_file({"prompt_embeddings": torch.ones(2, 70)}, lower / "adapter_model.safetensors")
    assert found(base, base, upper, lower) == 0


def test_what_is_missing_or_damaged_is_left_to_the_code_that_loads_it(tmp_path: Path) -> None:
    one = write(tmp_path / "one")
    assert stored_weights(tmp_path / "nowhere") is None
    assert stored_weights(f"{one}+{tmp_path / 'nowhere'}") is None
    cut = shutil.copytree(one, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((one / "model.safetensors").read_bytes()[:-1])
    assert stored_weights(cut) is None
    whole, gone = stored_weights(one), stored_weights(write(tmp_path / "gone"))
    shutil.rmtree(tmp_path / "gone")
    assert whole is not None
    assert gone is not None
    assert layers_in_common(whole, gone) == 0
