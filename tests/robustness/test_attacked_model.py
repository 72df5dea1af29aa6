"""Models as they are named to be attacked: a base with a delta, and what is said of those that cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support import robustness as support
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import VERDICTS, WIDER_TYPE
from wmdp_fast.checkpoints.checkpoint import apply_delta
from wmdp_fast.checkpoints.model_name import parts_of
from wmdp_fast.exceptions import ModelError
from wmdp_fast.robustness.attacked_model import AttackedModel
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions
from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    from pathlib import Path

# Of the models that the tests attack, in bfloat16 and with float32 wanted.
pytestmark = [VERDICTS, WIDER_TYPE]

ROLES = {"llama": "mlp.down_proj", "mixtral": "mlp"}


def attacked(model: str, **load: object) -> AttackedModel:
    return AttackedModel(model=model, load=LoadOptions(device="cpu", **load), score=ScoreOptions())


@pytest.fixture(scope="module", params=ROLES)
def unlearned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base in bfloat16, and one that it was unlearned to."""
    made: Path = tmp_path_factory.mktemp(request.param)
    base = support.save_model(made / "base", request.param)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    config = RMUConfig(
        layer_id=2, steering_coeff=2.0, alpha=50.0, learning_rate=0.05, batch_size=2, max_steps=2, max_length=30,
        parameters=ROLES[request.param], save_dtype="float32",
    )  # fmt: skip
    runs.unlearn(str(base), config, output=made / "unlearned")
    return made


def test_a_delta_in_memory_is_the_checkpoint_that_it_makes(unlearned: Path) -> None:
    named = f"{unlearned / 'base'}+{unlearned / 'unlearned' / 'delta.safetensors'}"
    model = attacked(named)
    opened = model.open()
    applied = apply_delta(unlearned / "base", unlearned / "unlearned", unlearned / "applied")
    expected = attacked(str(applied)).open()
    assert (opened.name, opened.dtype) == (named, expected.dtype) == (named, "float32")
    base = attacked(str(unlearned / "base")).open().loaded.model.state_dict()
    found, wanted = opened.loaded.model.state_dict(), expected.loaded.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert not all(torch.equal(base[name].float(), tensor) for name, tensor in wanted.items())
    assert model.identity()[0] == attacked(str(unlearned / "base")).identity()[0]
    assert len(model.identity()) == 2
    assert parts_of(f"{unlearned / 'base'}+{unlearned / 'unlearned'}") == parts_of(named)


def test_a_delta_of_another_base_is_refused_in_one_line(unlearned: Path, tmp_path: Path) -> None:
    delta = unlearned / "unlearned" / "delta.safetensors"
    other = support.save_model(tmp_path / "other", "gemma2")
    for base in (other, unlearned / "unlearned"):
        with pytest.raises(ModelError, match=r"has no tensor|was made from another base") as caught:
            attacked(f"{base}+{delta}").open()
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"none.safetensors does not exist; `wmdp-fast unlearn` writes delta"):
        attacked(f"{unlearned / 'base'}+{tmp_path / 'none.safetensors'}").identity()


def test_the_folder_of_an_adapter_says_what_to_pass(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    with pytest.raises(ModelError, match="is a PEFT adapter, not a model: pass the model that it belongs to"):
        attacked(str(tmp_path)).identity()
