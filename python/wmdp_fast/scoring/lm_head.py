"""From the last hidden states to the log-probabilities of a few tokens, a part of the vocabulary after the other.

Logits of hundreds of tokens over a whole vocabulary are hundreds of megabytes, which a CPU takes longer to find memory
for and to write than to compute. Nearly all models make them by one linear layer and do nothing else to them; of such a
model the layer is taken in parts, and what a part says is read off it at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from wmdp_fast._rust import TokenLogprobs
from wmdp_fast.checkpoints.stored_rows import rows_behind
from wmdp_fast.models.fused import linear as onednn
from wmdp_fast.models.fused.forwards import replaced_forwards
from wmdp_fast.models.head import logits_without_base
from wmdp_fast.models.row_reading import reads_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.scoring.scores import ScoreMode

# Tokens of the vocabulary at a time: with 1,024 rows, 4 MiB of logits, which stay in the caches.
LM_HEAD_PART = 1024


@dataclass(frozen=True)
class ChunkedLMHead:
    """A model without its projection onto the vocabulary, and that projection.

    Attributes:
        base: Called as the model is, it returns an object with `last_hidden_state`.
        head: The projection, in a CPU's memory.
    """

    base: nn.Module
    head: nn.Linear

    @classmethod
    def of(cls, model: nn.Module, score_mode: ScoreMode) -> ChunkedLMHead | None:
        """The parts of a model whose logits are nothing but that projection, and that can be read in this mode.

        Whether they are is tried on made-up hidden states.
        """
        if not isinstance(model, PreTrainedModel):
            return None
        head_of: Any = model.get_output_embeddings
        base, head = model.base_model, head_of()
        if base is model or not all(_is_untouched(module) for module in (model, head)) or type(head) is not nn.Linear:
            return None
        weight = head.weight
        # In mode "model" bits count, and those are torch's.
        fits = weight.device.type == "cpu" and score_mode == "float32"
        return cls(base, head) if fits and _returns_its_projection(model, base, head) else None

    def look_up(self, hidden: torch.Tensor, readouts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of tokens, and 1 where the token is the most probable; see `scores.look_up`.

        Args:
            hidden: `[R, hidden size]`.
            readouts: For each token, its row: int64 `[N]`.
            tokens: Token ids: int64 `[N]`.

        Returns:
            float32 `[2, N]`.
        """
        [found] = self.look_up_all([(hidden, readouts, tokens)])
        return found

    def look_up_all(self, batches: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        """The same for several batches, a part of the vocabulary for all of them after the other."""
        weight, bias, rows = self.head.weight.detach(), self.head.bias, rows_behind(self.head.weight)
        # Its rounding goes straight into the scores.
        exact = onednn.is_faster() and weight.dtype == torch.float32
        linear: Any = onednn.linear_of_short_sums if exact else F.linear
        threads = torch.get_num_threads()
        found = [TokenLogprobs(readouts.numpy(), tokens.numpy(), len(hidden)) for hidden, readouts, tokens in batches]
        for start in range(0, len(weight), LM_HEAD_PART):
            part = slice(start, start + LM_HEAD_PART)
            weight_part = weight[part] if rows is None else rows.part(part.start, part.stop)
            bias_part = None if bias is None else bias.detach()[part]
            for (hidden, _, _), one in zip(batches, found, strict=True):
                one.add(linear(hidden, weight_part, bias_part).float().numpy(), threads=threads)
        return [torch.stack([torch.from_numpy(array).float() for array in one.found()]) for one in found]


def _is_untouched(module: Any) -> bool:
    """Whether nobody has hung anything on a module that wants it to be called."""
    if module is None or module._forward_hooks or module._forward_pre_hooks:
        return False
    return "forward" not in vars(module) or reads_rows(vars(module)["forward"])


def _returns_its_projection(model: PreTrainedModel, base: nn.Module, head: nn.Linear) -> bool:
    """Whether a model projects its hidden states as they are, and returns that as it is; some cap or scale either."""
    # Large, as a cap is seen with large numbers only.
    states = torch.linspace(-50, 50, 2 * head.in_features, dtype=torch.float32, device="cpu").view(2, -1)
    made_up = torch.linspace(50, -50, 2 * head.out_features, dtype=torch.float32, device="cpu").view(2, -1)
    states, made_up = states.to(head.weight.dtype), made_up.to(head.weight.dtype)
    projected: list[torch.Tensor] = []

    def project(hidden: torch.Tensor) -> torch.Tensor:
        projected.append(hidden)
        return made_up.view(*hidden.shape[:-1], -1)

    outputs: Any = MoeModelOutputWithPast(last_hidden_state=cast("Any", states))
    outputs.cross_attentions = None  # which older classes pass on
    with torch.no_grad(), replaced_forwards({head: project}):
        try:
            logits = logits_without_base(model, base, outputs, states)
        except (AttributeError, TypeError, KeyError, IndexError):
            # It wants more of its base than hidden states, and so does more with it than projecting them.
            return False
    as_they_are = len(projected) == 1 and torch.equal(projected[0].view(states.shape), states)
    return as_they_are and isinstance(logits, torch.Tensor) and torch.equal(logits.float(), made_up.float())
