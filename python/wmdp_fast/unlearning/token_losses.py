"""Losses of tokens from the hidden states that predict them, some rows of logits at a time, with exact gradients.

The logits of all tokens over a whole vocabulary are never there at once, neither forwards nor backwards. A loss over
tokens is linear in those of each token, and so is its gradient: what a token's loss does to its hidden state is found
while its logits are there, and multiplied by what weight it turns out to have when the gradient is wanted. If something
of the head is trained too, that doesn't do, since the gradient of a matrix is one of all tokens: then logits are made
again for it.

How a loss changes with logits is written down here, not left to autograd, which keeps and makes twice as many tensors
over the vocabulary. How logits change with hidden states and head is autograd's to say: some models cap or scale them.

Losses are float32; those of a model in float64 are float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    # From hidden states [R, d] to logits [R, V].
    Logits = Callable[[Tensor], Tensor]
    # From logits [R, V], float32, and the rows that they are of all N, to losses [R], and to what makes the gradient
    # [R, V] of each row's loss by its logits, which may be asked once.
    Loss = Callable[[Tensor, slice], tuple[Tensor, Callable[[], Tensor]]]


def cross_entropies(
    logits: Logits, hidden: Tensor, targets: Tensor, *, rows: int, head: Sequence[Tensor] = ()
) -> Tensor:
    """The cross-entropy of each token: minus the log-probability of its target.

    Args:
        logits: From hidden states to logits.
        hidden: `[N, d]`.
        targets: Token ids, int64 `[N]`.
        rows: Most rows of logits at a time.
        head: Parameters that `logits` depends on and that need a gradient too.

    Returns:
        Nats, float32 `[N]`.
    """

    def loss(made: Tensor, at: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        log_probabilities, target = made.log_softmax(dim=1), targets[at]
        each = torch.arange(len(target), device=target.device)
        found = -log_probabilities[each, target]

        def gradient() -> Tensor:
            # In place of `scatter_add_`, which deterministic algorithms on a GPU do without.
            log_probabilities.exp_()[each, target] -= 1
            return log_probabilities

        return found, gradient

    return token_losses(loss, logits, hidden, rows=rows, head=head)


def soft_cross_entropies(
    logits: Logits, hidden: Tensor, tokens: Tensor, shares: Tensor, *, rows: int, head: Sequence[Tensor] = ()
) -> Tensor:
    """The cross-entropy of each token to a distribution over a few tokens: `-sum_k shares_k log p(tokens_k)`.

    Args:
        logits: From hidden states to logits.
        hidden: `[N, d]`.
        tokens: Token ids, int64 `[N, K]`.
        shares: Their probabilities, float32 `[N, K]`; they need not sum to 1.
        rows: Most rows of logits at a time.
        head: As in `cross_entropies`.

    Returns:
        Nats, float32 `[N]`.
    """

    def loss(made: Tensor, at: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        log_probabilities, share = made.log_softmax(dim=1), shares[at].to(made.dtype)
        found = -(share * log_probabilities.gather(1, tokens[at])).sum(dim=1)

        def gradient() -> Tensor:
            whole = log_probabilities.exp_().mul_(share.sum(dim=1, keepdim=True))
            return whole.scatter_add_(1, tokens[at], -share)

        return found, gradient

    return token_losses(loss, logits, hidden, rows=rows, head=head)


def kl_divergences(
    logits: Logits,
    hidden: Tensor,
    before: Callable[[slice], Tensor],
    *,
    rows: int,
    temperature: float = 1.0,
    head: Sequence[Tensor] = (),
) -> Tensor:
    """KL(p0 || p) of each token, with a gradient through p alone.

    Args:
        logits: From hidden states to logits.
        hidden: `[N, d]`.
        before: The logits behind p0 of some of the N rows, `[R, V]`.
        rows: Most rows of logits at a time.
        temperature: What both logits are divided by.
        head: As in `cross_entropies`.

    Returns:
        Nats, float32 `[N]`.
    """

    def loss(made: Tensor, at: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        target = _tempered(_wide(before(at)), temperature).log_softmax(dim=1)
        log_probabilities = _tempered(made, temperature).log_softmax(dim=1)
        found = F.kl_div(log_probabilities, target, reduction="none", log_target=True).sum(dim=1)

        def gradient() -> Tensor:
            return _tempered(log_probabilities.exp_().sub_(target.exp_()), temperature)

        return found, gradient

    return token_losses(loss, logits, hidden, rows=rows, head=head)


def token_losses(loss: Loss, logits: Logits, hidden: Tensor, *, rows: int, head: Sequence[Tensor] = ()) -> Tensor:
    """Any loss of each token that depends on its own logits alone.

    Args:
        loss: From logits `[R, V]` in float32, and which of the N rows they are of, to losses `[R]` and to what makes
            the gradient `[R, V]` of each by its logits. It may not change the logits.
        logits: From hidden states `[R, d]` to logits `[R, V]`.
        hidden: `[N, d]`.
        rows: Most rows of logits at a time.
        head: As in `cross_entropies`.

    Returns:
        float32 `[N]`.
    """
    found: Tensor = _InParts.apply(loss, logits, rows, hidden, *head)
    return found


class _InParts(torch.autograd.Function):
    """Takes the losses of some rows after those of others, and lets go of their logits in between."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, logits: Logits, rows: int, hidden: Tensor, *head: Tensor) -> Tensor:
        losses = torch.empty(len(hidden), dtype=_wide_dtype(hidden), device=hidden.device)
        for_hidden, for_head = ctx.needs_input_grad[3], any(ctx.needs_input_grad[4:])
        slopes = torch.empty_like(hidden) if for_hidden and not for_head else None
        for at in _parts(len(hidden), rows):
            part = hidden[at].detach()
            if slopes is None:
                losses[at], _ = loss(_wide(logits(part)), at)
            else:
                losses[at], (slopes[at],) = _with_gradients(loss, logits, part.requires_grad_(), at)
        if for_head:
            ctx.save_for_backward(hidden)
            ctx.again = loss, logits, rows, head
        elif slopes is not None:
            ctx.save_for_backward(slopes)
            ctx.again = None
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        if ctx.again is None:
            return None, None, None, (saved * weights.unsqueeze(1)).to(saved.dtype)
        loss, logits, rows, head = ctx.again
        wanted = [one for one, needed in zip(head, ctx.needs_input_grad[4:], strict=True) if needed]
        for_hidden = torch.empty_like(saved)
        totals = [torch.zeros_like(one, dtype=_wide_dtype(one), requires_grad=False) for one in wanted]
        for at in _parts(len(saved), rows):
            part = saved[at].detach().requires_grad_()
            _, (for_hidden[at], *found) = _with_gradients(loss, logits, part, at, wanted, weights[at].unsqueeze(1))
            for total, one in zip(totals, found, strict=True):
                total += one
        of_wanted = dict(zip(map(id, wanted), totals, strict=True))
        for_head = [None if id(one) not in of_wanted else of_wanted[id(one)].to(one.dtype) for one in head]
        return None, None, None, for_hidden, *for_head


def _with_gradients(
    loss: Loss, logits: Logits, hidden: Tensor, at: slice, head: Sequence[Tensor] = (), weights: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The losses of some rows, and the gradients of their weighted sum by the hidden states and by parts of the head.

    Args:
        loss: As in `token_losses`.
        logits: As in `token_losses`.
        hidden: `[R, d]`, which asks for its gradient.
        at: Which of the N rows they are.
        head: The parts.
        weights: `[R, 1]`; None if all are 1.
    """
    with torch.enable_grad():
        made = logits(hidden)
    losses, gradient = loss(_wide(made.detach()), at)
    slopes = gradient()
    if weights is not None:
        slopes *= weights
    return losses, torch.autograd.grad(made, [hidden, *head], slopes.to(made.dtype))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_dtype(tensor))


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    """What to compute in: float32, or what is wider already."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


def _parts(count: int, rows: int) -> list[slice]:
    """As few as may be, and alike: a few rows left over at the end would cost as much as many."""
    if not count:
        return []
    size = -(-count // -(-count // rows))
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]
