"""Running a part of a decoder is what the whole model does there, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support import tiny_models
from wmdp_fast.exceptions import InternalError, ModelError
from wmdp_fast.models.decoder import Decoder, decoder_of, record_outputs

INPUTS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 3], [0, 0, 4, 9, 9, 2]]),
    "attention_mask": torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]),
}


def decoder(family: str = "llama") -> Decoder:
    return decoder_of(tiny_models.build(family).eval())


@torch.no_grad()
def outputs_of(model: Decoder) -> list[torch.Tensor]:
    """What each layer returns in a pass through the whole model."""
    call: Any = model.model
    with record_outputs(model.layers) as outputs:
        call(**INPUTS, use_cache=False)
    return outputs


@torch.no_grad()
@pytest.mark.parametrize("family", [*tiny_models.TRIE_FAMILIES, "falcon"])
def test_each_part_gives_what_the_whole_does(family: str) -> None:
    model = decoder(family)
    count = len(model.layers)
    expected = outputs_of(model)
    assert len(expected) == count
    for start in range(count):
        for stop in range(start + 1, count + 1):
            hidden, arguments = model.run_to(start, stop, INPUTS)
            if start > 0:
                assert torch.equal(hidden, expected[start - 1])
            assert list(arguments) == list(range(start, stop))
            assert torch.equal(model.run_layers(start, stop, hidden, arguments), expected[stop - 1])
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.model.modules())


@torch.no_grad()
def test_arguments_are_right_without_the_layers_below() -> None:
    model = decoder("gemma2")
    hidden, _ = model.run_to(1, 2, INPUTS)
    embedded, arguments = model.run_to(1, 2, INPUTS, skip=True)
    assert not torch.equal(embedded, hidden)
    assert torch.equal(model.run_layers(1, 2, hidden, arguments), outputs_of(model)[1])


def test_no_layer_gives_what_enters() -> None:
    hidden = torch.zeros(1, 1, 32)
    assert decoder().run_layers(1, 1, hidden, {}) is hidden


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (1, 1), (0, 3), (2, 3)])
def test_layers_that_are_not_there(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="of a model with layers 0 to 1"):
        decoder().run_to(start, stop, INPUTS)


def test_layers_that_are_not_called_one_after_another() -> None:
    model = decoder()
    order = Decoder(model.model, torch.nn.ModuleList(reversed(model.layers)), "layers", model.hidden_size)
    with pytest.raises(InternalError, match="called layer 1 out of turn"):
        order.run_to(0, 2, INPUTS)
    others = Decoder(model.model, decoder().layers, "layers", model.hidden_size)
    with pytest.raises(InternalError, match="did not call its layers one after another"):
        others.run_to(0, 2, INPUTS)


def test_gradients_go_through_a_part() -> None:
    model = decoder()
    hidden, arguments = model.run_to(0, 2, INPUTS)
    entering = hidden.detach().requires_grad_()
    model.run_layers(0, 2, entering, arguments).square().sum().backward()
    assert entering.grad is not None
    assert entering.grad.abs().sum() > 0


def test_hooks_go_when_a_pass_fails() -> None:
    model = decoder()
    with pytest.raises(RuntimeError), record_outputs(model.layers):
        raise RuntimeError
    assert not any(layer._forward_hooks for layer in model.layers)


def test_a_model_without_layers() -> None:
    model = tiny_models.build("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match="no list of 5 decoder layers"):
        decoder_of(model)


class Twice(torch.nn.ModuleList):
    """Layers that a model goes through twice."""

    def __getitem__(self, index: Any) -> Any:
        found: Any = super().__getitem__(index)
        return [*found, *found] if isinstance(index, slice) else found


@pytest.mark.parametrize("family", [*tiny_models.TRIE_FAMILIES, "falcon", "mamba"])
def test_layers_that_are_called_in_their_turn_are_accepted(family: str) -> None:
    model = decoder(family)
    model.refuse_other_orders()
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_layers_that_are_called_twice_have_no_output_of_their_own() -> None:
    whole = tiny_models.build("llama").eval()
    whole.model.layers = Twice(whole.model.layers)
    with pytest.raises(ModelError, match=r"order of its own \(layer 0 after layer 1\), some maybe several times"):
        decoder_of(whole).refuse_other_orders()


def test_layers_of_several_streams_have_no_output_of_their_own() -> None:
    with pytest.raises(ModelError, match=r"several residual streams from layer to layer \(\[2, 1, 2, 32\]"):
        decoder("gemma3n_text").refuse_other_orders()


class Named(torch.nn.Module):
    """A model whose layers return the residual stream by name, and that wants it so.

    Args:
        order: In which its layers are called.
    """

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(8, 4)
        self.layers = torch.nn.ModuleList(NamedLayer() for _ in range(2))
        self.order = order

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        hidden: torch.Tensor = self.embedding(input_ids)
        for index in self.order:
            hidden = self.layers[index](hidden)["stream"]
        return hidden


class NamedLayer(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, hidden: torch.Tensor) -> Any:
        return {"stream": super().forward(hidden)}


def named(*order: int) -> Decoder:
    model: Any = Named(*order)
    return Decoder(model, model.layers, "layers", 4)


def test_layers_that_do_not_pass_on_what_they_are_given_are_called_themselves() -> None:
    model = named(0, 1)
    before = torch.get_rng_state()
    model.refuse_other_orders()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any("forward" in vars(module) for module in model.model.modules())
    for order, found in (((0, 1, 0, 1), "layer 0 after layer 1"), ((1, 0), "layer 1 after none")):
        with pytest.raises(ModelError, match=rf"Named calls its layers in an order of its own \({found}\)"):
            named(*order).refuse_other_orders()


def test_a_model_that_cannot_be_asked_is_refused() -> None:
    """Even one that called all its layers in their turn before something that has nothing to do with them failed."""
    model = named(0, 1)
    model.model.to("meta")
    with pytest.raises(ModelError, match=r"Named cannot be asked in which order it calls its layers \(\w+Error: "):
        model.refuse_other_orders()
    with pytest.raises(ModelError, match=r"cannot be asked .* \(1 of 2 layers called\)"):
        named(0).refuse_other_orders()
    for broken in (decoder(), named(0, 1)):
        broken.model.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ModelError, match=r"cannot be asked .* \(ZeroDivisionError: "):
            broken.refuse_other_orders()
