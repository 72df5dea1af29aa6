"""Soft prompts: vectors in front of every prompt, optimized on some questions and tried on others."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from wmdp_fast._rust import Requests
from wmdp_fast.exceptions import DivergedError, ModelError
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.models.logits import forward_without_cache
from wmdp_fast.models.threads import computing
from wmdp_fast.robustness.attacks.relearn import marks
from wmdp_fast.robustness.coordinate_gradient import embeddings_of
from wmdp_fast.robustness.insertion import answers_of
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting
from wmdp_fast.robustness.questions import scored
from wmdp_fast.robustness.residual_stream import decoder_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from wmdp_fast.robustness.answers import Answers
    from wmdp_fast.robustness.subject import Subject

BATCH = 8
"""Questions of a step."""

# By budget: how many vectors, by how much of an embedding's root mean square a number moves in a step, and steps.
_TRIED: dict[Budget, tuple[tuple[int, ...], tuple[float, ...], int]] = {
    "quick": ((10,), (0.1,), 25),
    "standard": ((10,), (0.03, 0.1, 0.3), 100),
    "full": ((10, 20), (0.03, 0.1, 0.3), 250),
}


class SoftPrompt(Attack):
    """Optimizes vectors in front of the prompts of the questions for choosing, and asks all questions behind them."""

    name: ClassVar[str] = "softprompt"
    summary: ClassVar[str] = "vectors in front of every prompt, optimized on half of the questions"
    access: ClassVar[Access] = "weights"
    about: ClassVar[str] = (
        "Vectors in place of embeddings, trained by Adam so that questions for choosing are answered right; the model"
        " itself stays as it is. Soft prompts can make a model say what it never knew (2502.15836), so the numbers say"
        " little without the base, a model that never learned (--never-learned) and the null, the same with shuffled"
        " answers. `passes` in the record are forward and backward passes of one prompt. `all` has it at budget full"
        " alone."
    )

    def settings(self, budget: Budget, seed: int) -> Sequence[Setting]:
        """Each number of vectors with each rate, taught the right answers, and shuffled ones."""
        counts, rates, steps = _TRIED[budget]
        return [
            Setting(
                values={"vectors": count, "rate": rate, "steps": steps, "answers": answers, "seed": seed},
                null=answers == "shuffled",
            )
            for count in counts
            for rate in rates
            for answers in ("right", "shuffled")
        ]

    def cost(self, subject: Subject, setting: Setting) -> float:
        """Readings, and the steps, forward and backward."""
        steps: int = setting.values["steps"]
        return len(marks(steps)) + 3 * steps * BATCH / len(subject.questions)

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """A reading with the vectors as they begin, some on the way, and one at the end.

        Raises:
            DivergedError: The loss is not finite any more.
            ModelError: The model has no embeddings, or no tokens are left to stand for the vectors.
        """
        values = setting.values
        rng = np.random.default_rng(values["seed"])
        soft = _Soft.drawn(subject, int(values["vectors"]), rng)
        gold = _taught(subject, rng) if setting.null else subject.questions.gold
        yield _reading(subject, soft, 0, {})
        lines = np.flatnonzero(subject.questions.is_for_choosing)
        optimizer = torch.optim.Adam(
            [soft.vectors], lr=values["rate"] * float(soft.vectors.detach().square().mean().sqrt())
        )
        wanted, order = set(marks(values["steps"])), np.array([], dtype=np.int64)
        for step in range(1, values["steps"] + 1):
            if len(order) < BATCH:
                order = np.concatenate([order, rng.permutation(lines)])
            batch, order = order[:BATCH], order[BATCH:]
            loss = soft.loss(subject, batch.tolist(), gold[batch].tolist())
            if not bool(loss.isfinite()):
                raise DivergedError(f"the loss of the soft prompt is {loss.item():g} at step {step}", step)
            [soft.vectors.grad] = torch.autograd.grad(loss, [soft.vectors])
            optimizer.step()
            if step in wanted:
                figures = {"loss": loss.item(), "passes": step * BATCH}
                yield _reading(subject, soft, step, figures)


@dataclass(frozen=True)
class _Soft:
    """Vectors, and the tokens that stand for them in prompts: some that no prompt has.

    Attributes:
        vectors: Trained, float32 `[k, d]`.
        tokens: Their ids, `[k]`.
        requests: The questions' own prompts as tokens.
    """

    vectors: Tensor
    tokens: Sequence[int]
    requests: Requests

    @classmethod
    def drawn(cls, subject: Subject, count: int, rng: np.random.Generator) -> _Soft:
        """Vectors that begin as the embeddings of some tokens."""
        decoder_in(subject.model)  # refuses adapters with a prompt of their own
        weight = embeddings_of(subject).weight.detach()
        requests = subject.questions.own(subject.model)[1]
        used = {token for question in range(requests.num_questions) for token in _row(requests, question)}
        tokenizer = subject.model.tokenizer
        free = sorted(set(range(3, len(weight))) - used - set(tokenizer.all_special_ids))
        if len(free) < count:
            raise ModelError(
                f"{len(free)} tokens of {subject.model.name} are in no prompt; a soft prompt takes {count}"
            )
        begun = weight[torch.from_numpy(rng.choice(len(weight), count)).to(weight.device)].float().clone()
        return cls(begun.requires_grad_(), free[:count], requests)

    @contextmanager
    def in_model(self, subject: Subject) -> Iterator[None]:
        """Inside, the tokens are read as the vectors."""
        embeddings = embeddings_of(subject)
        place = torch.full((embeddings.weight.shape[0],), -1, device=embeddings.weight.device)
        place[list(self.tokens)] = torch.arange(len(self.tokens), device=place.device)

        def read(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            found = place[inputs[0]]
            vectors = self.vectors[found.clamp_min(0)].to(output.dtype)
            return torch.where((found >= 0)[..., None], vectors, output)

        handle = embeddings.register_forward_hook(read)
        try:
            yield
        finally:
            handle.remove()

    def context(self, subject: Subject, question: int) -> list[int]:
        """A question's prompt behind the vectors, as tokens; of one that is too long, its end."""
        own = self.requests.context(question).tolist()
        longest = max(map(len, answers_of(self.requests, question)))
        first = own[:1] if own[0] == subject.model.tokenizer.bos_token_id else []
        room = subject.model.max_length - len(self.tokens) - longest - len(first)
        if room < 1:
            raise ModelError(f"{subject.model.name} reads {subject.model.max_length} tokens, too few for a soft prompt")
        return [*first, *self.tokens, *own[len(first) :][-room:]]

    def loss(self, subject: Subject, questions: Sequence[int], gold: Sequence[int]) -> Tensor:
        """The mean negative log-likelihood of the tokens of some answers, without dropout: as they are asked."""
        contexts = [self.context(subject, question) for question in questions]
        answers = [
            answers_of(self.requests, question)[choice] for question, choice in zip(questions, gold, strict=True)
        ]
        rows = [[*context, *answer] for context, answer in zip(contexts, answers, strict=True)]
        # What is behind a row does not reach it: attention is causal.
        padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = torch.tensor(row)
        with evaluation_mode(subject.network), torch.enable_grad(), computing(), self.in_model(subject):
            logits = forward_without_cache(subject.network, padded.to(subject.model.loaded.device)).logits
        predicting = [
            logits[place, len(context) - 1 : len(context) - 1 + len(answer)]
            for place, (context, answer) in enumerate(zip(contexts, answers, strict=True))
        ]
        target = torch.tensor([token for answer in answers for token in answer], device=logits.device)
        return torch.nn.functional.cross_entropy(torch.cat(predicting).float(), target)

    def ask(self, subject: Subject) -> Answers:
        """Asks all questions behind the vectors."""
        model, own = subject.model, self.requests
        every = range(own.num_questions)
        choices = [answers_of(own, one) for one in every]
        asked = Requests.from_tokens([self.context(subject, one) for one in every], choices, model.max_length)
        with torch.no_grad(), self.in_model(subject):
            scores = scored(model, asked)
        return subject.questions.answers_by(model, scores)


def _row(requests: Requests, question: int) -> list[int]:
    """All tokens of a question."""
    return [*requests.context(question).tolist(), *chain.from_iterable(answers_of(requests, question))]


def _taught(subject: Subject, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The right answers dealt out anew among the questions for choosing with as many choices."""
    questions = subject.questions
    gold, counts = questions.gold.copy(), np.rint(1 / questions.chance).astype(np.int64)
    for count in np.unique(counts):
        places = np.flatnonzero((counts == count) & questions.is_for_choosing)
        gold[places] = rng.permutation(gold[places])
    return gold


def _reading(subject: Subject, soft: _Soft, step: int, figures: dict[str, Any]) -> Reading:
    return Reading(answers=soft.ask(subject), step=step, figures=figures)
