"""The whole model on packed documents beside the plain way: a document at a time, all logits at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import kl_div

from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.models.fused.forwards import replaced_forwards
from wmdp_fast.unlearning.batch_reader import BatchReader
from wmdp_fast.unlearning.language_model import LanguageModel
from wmdp_fast.unlearning.method import Setup
from wmdp_fast.unlearning.trained_weights import exchanged

# OPT calls the decoder that its base has in it, not its base.
FAMILIES = ("llama", "mixtral", "gemma2", "gemma3_text", "gpt_neox", "opt")
TRAINED = {"mixtral": "self_attn.o_proj", "opt": "fc"}
CPU = torch.device("cpu")


def setup_of(model: Any, wanted: str) -> Setup:
    """What a method gets that trains the parameters whose names have `wanted` in them."""
    base = model.base_model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = {name: one.requires_grad_() for name, one in base.named_parameters() if wanted in name}
    originals = {name: one.detach().clone() for name, one in trained.items()}
    batches = BatchReader(
        forget_corpora=[runs.corpus(runs.documents(1))],
        retain_corpora=[runs.corpus(runs.documents(2))],
        max_lengths=[30],
        retain_max_length=30,
        batch_size=3,
        grad_accum=1,
        pad_id=runs.PAD,
        device=CPU,
    )
    return Setup(
        name="tiny",
        decoder=decoder_of(model),
        model=model,
        trained=trained,
        originals=originals,
        as_original=lambda: exchanged(trained, originals),
        batches=batches,
        total_steps=1,
        cache=None,
    )


def documents() -> list[Tensor]:
    return [torch.tensor(row[:30]) for row in runs.documents(1)[:3]]


def plain_logits(model: Any) -> list[Tensor]:
    return [model(document[None], use_cache=False).logits[0, :-1].float() for document in documents()]


def plain_losses(model: Any) -> list[Tensor]:
    """The cross-entropies of each document's tokens."""
    return [
        -logits.log_softmax(-1).gather(1, document[1:, None])[:, 0]
        for logits, document in zip(plain_logits(model), documents(), strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_documents_by_themselves(family: str) -> None:
    setup = setup_of(runs.model(family), TRAINED.get(family, "mlp"))
    expected = plain_losses(setup.model)
    weights = torch.tensor([0.5, -1.0, 2.0])
    loss = (weights * torch.stack([one.mean() for one in expected])).sum()
    gradients = torch.autograd.grad(loss, list(setup.trained.values()), materialize_grads=True)
    for packed in (True, False):
        for checkpointing in (False, True):
            model = LanguageModel(setup, gradient_checkpointing=checkpointing)
            losses = model.losses(setup.batches.forget(0, 0, packed=packed))
            torch.testing.assert_close(losses.nll, torch.cat(expected), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(losses.sums(), torch.stack([one.sum() for one in expected]))
            found = model.gradients((weights * losses.means()).sum())
            for mine, plain in zip(found.values(), gradients, strict=True):
                torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-5 * float(plain.abs().max()))


def test_a_layer_keeps_no_more_for_its_gradients_than_is_needed() -> None:
    """With down projections trained alone, nothing of the inputs of other matrices, and nothing twice."""
    setup = setup_of(runs.model("llama"), "mlp.down_proj")
    weights = {one.untyped_storage().data_ptr() for one in setup.model.parameters()}
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        memory = saved.untyped_storage()
        if memory.data_ptr() not in weights:
            kept[memory.data_ptr()] = memory.nbytes() // 4
        return saved

    layer = setup.decoder.layers[2]

    def forward(*args: Any, **kwargs: Any) -> Any:
        with saved_tensors_hooks(pack, lambda saved: saved):
            return type(layer).forward(layer, *args, **kwargs)

    batch = setup.batches.forget(0, 0, packed=True)
    with replaced_forwards({layer: forward}):
        losses = LanguageModel(setup).losses(batch)
    hidden, inner, query, key, heads = 32, 48, 32, 16, 4
    norms, attention, gates = 2 * (hidden + 1), 2 * query + 2 * key + heads, 2 * inner
    cosines_and_sines = 2 * 8
    assert sum(kept.values()) == batch.num_tokens * (norms + cosines_and_sines + attention + gates)
    assert losses.nll.requires_grad


def test_a_tied_head_that_is_trained_gets_its_whole_gradient() -> None:
    model = runs.model("gemma2")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    setup = setup_of(model, "embed_tokens")
    loss = torch.cat(plain_losses(model)).mean()
    (expected,) = torch.autograd.grad(loss, model.lm_head.weight)
    mine = LanguageModel(setup)
    found = mine.gradients(mine.losses(setup.batches.forget(0, 0, packed=True)).mean())
    torch.testing.assert_close(found["embed_tokens.weight"], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("wanted", ["mlp", "embed_tokens"])
def test_the_divergence_from_the_original_model(wanted: str) -> None:
    model = runs.model("gemma2")
    setup = setup_of(model, wanted)
    mine, batch = LanguageModel(setup), setup.batches.forget(0, 0, packed=True)
    assert float(mine.kl(batch).detach().abs().max()) == 0.0
    before = torch.cat(plain_logits(model)).detach().log_softmax(-1)
    with torch.no_grad():
        for parameter in setup.trained.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = torch.cat(plain_logits(model)).log_softmax(-1)
    expected = kl_div(after, before, reduction="none", log_target=True).sum(-1)
    found = mine.kl(batch)
    assert float(expected.detach().mean()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    halved = [torch.cat(plain_logits(model)) / 2]
    with mine.originals():
        halved.append(torch.cat(plain_logits(model)) / 2)
    after_halved, before_halved = (one.log_softmax(-1) for one in halved)
    torch.testing.assert_close(
        mine.kl(batch, temperature=2.0),
        kl_div(after_halved, before_halved, reduction="none", log_target=True).sum(-1),
        rtol=1e-3,
        atol=1e-5,
    )
    plain = torch.autograd.grad(expected.mean(), list(setup.trained.values()))
    for gradient, other in zip(mine.gradients(found.mean()).values(), plain, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))
    # Both at once, at a temperature.
    losses, divergences = mine.losses_and_kl(batch, temperature=2.0)
    assert torch.equal(losses.nll, mine.losses(batch).nll)
    assert torch.equal(divergences.nll, mine.kl(batch, temperature=2.0))
    assert torch.equal(divergences.document, losses.document)


def test_gradients_of_parts_add_up() -> None:
    setup = setup_of(runs.model("llama"), "mlp.down_proj")
    mine = LanguageModel(setup)
    batches = [setup.batches.forget(0, index, packed=True) for index in (0, 1)]
    together = mine.gradients(sum(mine.losses(batch).mean() for batch in batches))
    added: dict[str, Tensor] = {}
    for batch in batches:
        assert mine.gradients(mine.losses(batch).mean(), into=added) is added
    for name, gradient in together.items():
        torch.testing.assert_close(added[name], gradient)


def test_only_what_counts_is_a_loss() -> None:
    setup = setup_of(runs.model("llama"), "mlp.down_proj")
    mine = LanguageModel(setup)
    for packed in (True, False):
        batch = setup.batches.forget(0, 0, packed=packed)
        everything = mine.losses(batch)
        # The answer begins at the third token.
        places = batch.attention_mask.cumsum(1) if not packed else batch.inputs["position_ids"] + 1
        answers = mine.losses(replace(batch, counted=(places > 2).long() * batch.attention_mask))
        assert answers.counts().tolist() == (everything.counts() - 1).tolist()
        first = torch.cat([torch.zeros(1), everything.counts().cumsum(0)[:-1]]).long()
        kept = torch.ones(len(everything.nll), dtype=torch.bool)
        kept[first] = False
        assert torch.equal(answers.nll, everything.nll[kept])
    with pytest.raises(ValueError, match="no token whose loss counts"):
        mine.losses(replace(batch, counted=torch.zeros_like(batch.attention_mask)))


def test_what_differs_without_padding_is_said() -> None:
    setup = setup_of(runs.model("llama"), "mlp.down_proj")
    mine = LanguageModel(setup)
    padded, packed = (setup.batches.forget(0, 0, packed=packed) for packed in (False, True))
    assert mine.why_padded(padded, packed) is None
    other = setup.batches.forget(0, 0, packed=False)
    other.inputs["input_ids"][:, -1] = 5
    assert "packed, losses of tokens differ by" in str(mine.why_padded(other, packed))


def test_a_model_whose_head_wants_more_than_hidden_states_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = runs.model("llama")
    whole = type(model).forward

    def forward(self: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        outputs = whole(self, input_ids, **kwargs)
        outputs.logits = outputs.logits + input_ids[..., None]
        return outputs

    setup = setup_of(model, "mlp.down_proj")
    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(ModelError, match="makes its logits from more than its last hidden states"):
        LanguageModel(setup)
