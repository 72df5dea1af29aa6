"""What a model makes of a residual stream as if its last layer had left it: final norm, head, and all else it does.

It is the model itself, called with its layers left out, so nothing here knows an architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.decoder import residual_of
from wmdp_fast.models.fused.forwards import replaced_forwards
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.logits import are_close, forward_without_cache
from wmdp_fast.models.threads import computing
from wmdp_fast.robustness.residual_stream import decoder_in
from wmdp_fast.scoring.scores import PartialScores, TargetScores, score_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from wmdp_fast._rust import Requests
    from wmdp_fast.scoring.local import LocalModel
    from wmdp_fast.scoring.scores import Scores

# Numbers in the logits that are computed at a time.
_LOGITS = 1 << 26


@dataclass(frozen=True)
class Targets:
    """The tokens of all choices of a run, and the rows and positions at which they are read.

    Attributes:
        rows: Token ids of each row: a question's context, and what is before the last token of a choice.
        from_end: Positions of each row that are read, counted from its end, as `residual_stream` takes them.
        readouts: For each token of a choice, its place among all positions.
        tokens: The token.
        choices: The choice that it is of.
    """

    rows: list[list[int]]
    from_end: list[list[int]]
    readouts: list[int]
    tokens: list[int]
    choices: list[int]

    @classmethod
    def of(cls, requests: Requests) -> Targets:
        """Those of all requests. Choices that differ in their last token alone, as letters do, share a row."""
        found = cls([], [], [], [], [])
        firsts: dict[tuple[int, tuple[int, ...]], int] = {}
        count = 0
        for question in range(requests.num_questions):
            context = requests.context(question).tolist()
            for choice in range(*requests.choice_offsets[question : question + 2].tolist()):
                continuation = requests.continuation(choice).tolist()
                key = question, tuple(continuation[:-1])
                if key not in firsts:
                    firsts[key] = count
                    found.rows.append(context + continuation[:-1])
                    found.from_end.append(list(range(len(continuation), 0, -1)))
                    count += len(continuation)
                found.readouts.extend(range(firsts[key], firsts[key] + len(continuation)))
                found.tokens.extend(continuation)
                found.choices.extend([choice] * len(continuation))
        return found


@dataclass(frozen=True)
class Unembedding:
    """A model without its layers.

    Attributes:
        model: The model.
        beside: What each layer returns beside the residual stream, or None of layers that return it alone.
    """

    model: LocalModel
    beside: Sequence[tuple[Any, ...] | None]

    @classmethod
    def of(cls, model: LocalModel) -> Unembedding:
        """That of a model; tried on two tokens.

        Raises:
            ModelError: Its logits do not follow from what its last layer returns.
        """
        network, layers = model.loaded.model, decoder_in(model).layers
        returned: list[Any] = []
        handles = [layer.register_forward_hook(lambda *given: returned.append(given[2])) for layer in layers]
        tokens = torch.tensor([[1], [2]], device=model.loaded.device)
        with evaluation_mode(network), computing():
            try:
                expected = forward_without_cache(network, tokens).logits[:, 0]
            finally:
                for handle in handles:
                    handle.remove()
            found = cls(model, [one[1:] if isinstance(one, tuple) else None for one in returned])
            once = len(returned) == len(layers)
            if not once or not are_close(found._logits(layers, residual_of(returned[-1])[:, 0]), expected):
                raise ModelError(f"the logits of {model.name} are not made from what its last layer returns alone")
        return found

    def scores(self, stream: Tensor, targets: Targets, num_choices: int) -> Scores:
        """Scores the choices of a run by a stream.

        Args:
            stream: At the positions of `targets`, `[N, d]`.
            targets: What is read where.
            num_choices: Choices of the run.

        Raises:
            ModelError: The model's output is not a number.
        """
        loaded, layers = self.model.loaded, decoder_in(self.model).layers
        config: Any = loaded.model.config
        step = max(1, _LOGITS // int(config.get_text_config().vocab_size))
        readouts, tokens = np.array(targets.readouts), np.array(targets.tokens)
        logprobs, greedy = np.empty(len(tokens)), np.empty(len(tokens), dtype=np.bool_)
        sum_dtype = torch.float64
        with evaluation_mode(loaded.model), computing():
            for start in range(0, len(stream), step):
                here = (readouts >= start) & (readouts < start + step)
                logits = self._logits(layers, stream[start : start + step].to(loaded.device))
                read = score_targets(logits, readouts[here] - start, tokens[here], self.model.options.score_mode)
                logprobs[here], greedy[here], sum_dtype = read.logprobs, read.greedy, read.sum_dtype
        partial = PartialScores.empty(num_choices)
        partial.add(TargetScores(logprobs, greedy, sum_dtype), np.array(targets.choices))
        return partial.scores(tokens_useful=len(stream), token_budget=step, engine="padded")

    def _logits(self, layers: nn.ModuleList, stream: Tensor) -> Tensor:
        """`[R, V]` of a stream `[R, d]`, each as if it were the only token of its row."""
        stream = stream[:, None]

        def forward_of(beside: tuple[Any, ...] | None) -> Callable[..., Any]:
            return lambda *_, **__: stream if beside is None else (stream, *beside)

        forwards: dict[nn.Module, Callable[..., Any]] = {
            layer: forward_of(beside) for layer, beside in zip(layers, self.beside, strict=True)
        }
        tokens = torch.zeros(len(stream), 1, dtype=torch.long, device=stream.device)
        with replaced_forwards(forwards):
            logits: Tensor = forward_without_cache(self.model.loaded.model, tokens).logits
        return logits[:, 0]
