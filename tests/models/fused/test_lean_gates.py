"""Feed-forward blocks that keep less for their gradients: the same bits from less memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from wmdp_fast.models.fused.lean_gates import LEAN_GATES
from wmdp_fast.models.fused.linear import LINEAR_LAYERS
from wmdp_fast.models.fused.trials import replaced_modules

if TYPE_CHECKING:
    from torch import Tensor

TOKENS, HIDDEN, INNER = 5, 16, 48
SIZES = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 4}


def block(kind: type[nn.Module] = LlamaMLP, trained: str = "") -> nn.Module:
    torch.manual_seed(0)
    made = kind(AutoConfig.for_model("llama" if kind is LlamaMLP else "gemma3_text", **SIZES))
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(trained in name)
    return made


def with_factors(dropout: float) -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["gate_proj", "down_proj"], lora_dropout=dropout)
    made = peft.get_peft_model(nn.ModuleDict({"mlp": block()}), config).base_model.model["mlp"]
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return made


def gradients(model: nn.Module, rows: Tensor) -> tuple[list[Tensor], int]:
    """The output, the gradients of the input and of what is trained, and the numbers kept in between."""
    known = {one.untyped_storage().data_ptr() for one in (rows, *model.parameters())}
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        if (memory := saved.untyped_storage().data_ptr()) not in known:
            kept[memory] = saved.untyped_storage().nbytes() // 4
        return saved

    torch.manual_seed(1)
    with saved_tensors_hooks(pack, lambda saved: saved):
        out = model(rows)
    wanted = [one for one in (rows, *model.parameters()) if one.requires_grad]
    return [out, *torch.autograd.grad(out.square().sum(), wanted)], sum(kept.values())


def the_same_with_less(model: nn.Module) -> tuple[int, int]:
    """Checks that all bits are the same; the numbers kept with torch's own products, and how many fewer."""
    rows = torch.randn(1, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2)).requires_grad_()
    for parts in ((), (LINEAR_LAYERS,)):
        with replaced_modules(model, parts):
            expected, before = gradients(model, rows)
        with replaced_modules(model, (*parts, LEAN_GATES)):
            found, after = gradients(model, rows)
        assert len(expected) > 1
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert "forward" not in vars(model)
    return before, before - after


@pytest.mark.parametrize("kind", [LlamaMLP, Gemma3MLP])
@pytest.mark.parametrize("trained", ["down_proj", "proj", "gate_proj"])
def test_what_follows_from_the_rest_is_not_kept(kind: type[nn.Module], trained: str) -> None:
    products = 2 if "down" in trained or trained == "proj" else 1
    before, less = the_same_with_less(block(kind, trained))
    assert before >= (2 + products) * TOKENS * INNER
    assert less >= products * TOKENS * INNER


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_blocks_with_factors_beside_their_weights(dropout: float) -> None:
    _, less = the_same_with_less(with_factors(dropout))
    # What is let through of the product is kept.
    assert less >= (1 if dropout else 2) * TOKENS * INNER


def test_below_the_first_trained_weights_the_product_is_all_that_is_kept() -> None:
    model, rows = block(trained="down_proj"), torch.randn(1, TOKENS, HIDDEN)
    with replaced_modules(model, (LEAN_GATES,)):
        assert gradients(model, rows)[1] == TOKENS * INNER


class Clamped(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).clamp(-0.01, 0.01))


def test_a_block_with_ideas_of_its_own_stays() -> None:
    model = Clamped(AutoConfig.for_model("llama", **SIZES))
    with replaced_modules(model, (LEAN_GATES,)):
        assert "forward" not in vars(model)
    with replaced_modules(block(), (LEAN_GATES,)):
        pass
    plain = block()
    with replaced_modules(plain, (LEAN_GATES,)):
        assert "forward" in vars(plain)
