"""Greedy coordinate gradient: a text in front of every question, searched for on some and tried on others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from wmdp_fast.exceptions import ModelError
from wmdp_fast.robustness.attacks.relearn import marks
from wmdp_fast.robustness.coordinate_gradient import candidates, coordinate_gradient, embeddings_of, tried
from wmdp_fast.robustness.insertion import Insertion, start_of
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting
from wmdp_fast.robustness.residual_stream import decoder_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from wmdp_fast.robustness.insertion import Places
    from wmdp_fast.robustness.subject import Subject

BATCH = 8
"""Questions of a step."""

# By budget: tokens of the text, steps, candidates of a step, and tokens that are drawn from in each place.
_TRIED: dict[Budget, dict[str, int]] = {
    "quick": {"tokens": 10, "steps": 10, "candidates": 32, "top_k": 64},
    "standard": {"tokens": 20, "steps": 100, "candidates": 256, "top_k": 256},
    "full": {"tokens": 20, "steps": 250, "candidates": 512, "top_k": 256},
}
_RANDOM: dict[Budget, int] = {"quick": 5, "standard": 20, "full": 20}

# Random tokens that are tried for each token of a text, until one is read again as it was written.
_PATIENCE = 200


class GCG(Attack):
    """Searches for a text that makes the model answer the questions for choosing, and asks all questions after it."""

    name: ClassVar[str] = "gcg"
    summary: ClassVar[str] = "a text in front of every question, searched for by gradients on half of the questions"
    access: ClassVar[Access] = "weights"
    about: ClassVar[str] = (
        "Greedy coordinate gradient (Zou et al. 2023, 2307.15043), with one text for all questions and the loss of the"
        " right choice among a question's choices, over 8 questions for choosing a step, others in each. All that is"
        " tried and reported is asked as text, and candidates that a tokenizer would read as other tokens are left out."
        " The search needs weights; whoever has the text needs none. The null is the best of as many tokens drawn at"
        " random. Papers search for hours (nanoGCG: 250 steps of 512 candidates), so a failure at a smaller budget"
        " shows little. Passes in the record are of one prompt. `all` has it at budget full alone."
    )

    def settings(self, budget: Budget, seed: int) -> Sequence[Setting]:
        """The search, and random texts."""
        values = _TRIED[budget]
        return [
            Setting(values={**values, "seed": seed}),
            Setting(values={"tokens": values["tokens"], "random": _RANDOM[budget], "seed": seed}, null=True),
        ]

    def cost(self, subject: Subject, setting: Setting) -> float:
        """Readings, and the prompts of the steps: forward and backward, and once for each candidate."""
        values = setting.values
        if setting.null:
            return float(values["random"])
        prompts: int = values["steps"] * BATCH * (3 + values["candidates"])
        return len(marks(values["steps"])) + prompts / len(subject.questions)

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """A reading with the text as it begins, some on the way, and one at the end; of random texts, one of each.

        Raises:
            ModelError: The model has no embeddings or gives no numbers, or no text is read as the tokens it is made of.
        """
        values, insertion = setting.values, Insertion(subject)
        decoder_in(subject.model)  # refuses adapters with a prompt of their own
        rng = np.random.default_rng(values["seed"])
        allowed = subject.once("printable tokens", lambda: printable(subject))
        if setting.null:
            for _ in range(values["random"]):
                text = decoded(subject, random_tokens(insertion, allowed, values["tokens"], rng))
                yield _reading(insertion, text, None, {})
            return
        search = _Search.begun(insertion, allowed, values, rng)
        yield search.reading(0)
        wanted = set(marks(values["steps"]))
        for step in range(1, values["steps"] + 1):
            search.step()
            if step in wanted:
                yield search.reading(step)


@dataclass
class _Search:
    """A search on its way.

    Attributes:
        insertion: Where the text is put.
        places: The same as tokens, of the questions for choosing.
        allowed: Which tokens may be taken, `[V]`.
        values: The setting's.
        rng: Draws questions and candidates.
        tokens: Of the text as it is now.
        figures: What has been done.
        waiting: Questions that are next.
    """

    insertion: Insertion
    places: Places
    allowed: NDArray[np.bool_]
    values: Mapping[str, Any]
    rng: np.random.Generator
    tokens: tuple[int, ...]
    figures: dict[str, Any] = field(
        default_factory=lambda: {"forward passes": 0, "backward passes": 0, "candidates": 0, "read as other tokens": 0}
    )
    waiting: list[int] = field(default_factory=list)

    @classmethod
    def begun(
        cls, insertion: Insertion, allowed: NDArray[np.bool_], values: Mapping[str, Any], rng: np.random.Generator
    ) -> _Search:
        """Begins with random tokens."""
        subject, tokens = insertion.subject, random_tokens(insertion, allowed, values["tokens"], rng)
        lines = np.flatnonzero(subject.questions.is_for_choosing).tolist()
        places = insertion.places(decoded(subject, tokens), tokens, lines)
        if len(places.heads) < BATCH:
            raise ModelError(
                f"{len(places.heads)} questions for choosing leave room for a text of {len(tokens)} tokens or read it"
                f" as those; a step takes {BATCH}"
            )
        return cls(insertion, places, allowed, values, rng, tuple(tokens))

    def step(self) -> None:
        """Puts the best candidate in place of the text, whether or not it is better, as the paper does."""
        if len(self.waiting) < BATCH:
            self.waiting += self.rng.permutation(list(self.places.heads)).tolist()
        batch, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
        subject, values = self.insertion.subject, self.values
        gradient = coordinate_gradient(subject, self.places, self.tokens, batch)
        drawn = candidates(gradient, self.tokens, self.allowed, values["top_k"], values["candidates"], self.rng)
        found = tried(self.insertion, self.places, drawn, [decoded(subject, one) for one in drawn], batch)
        if found.survivors:
            best = int(found.losses.argmin())
            self.tokens, self.figures["loss"] = found.survivors[best], float(found.losses[best])
        self.figures["forward passes"] += BATCH * (1 + len(found.survivors))
        self.figures["backward passes"] += BATCH
        self.figures["candidates"] += len(found.survivors)
        self.figures["read as other tokens"] += len(drawn) - len(found.survivors)

    def reading(self, step: int) -> Reading:
        """All questions asked after the text."""
        return _reading(self.insertion, decoded(self.insertion.subject, self.tokens), step, dict(self.figures))


def decoded(subject: Subject, tokens: Sequence[int]) -> str:
    """The text of some tokens."""
    return str(subject.model.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def printable(subject: Subject) -> NDArray[np.bool_]:
    """Which tokens have a text that can be typed, `[V]`: no special ones, no parts of characters, no line breaks."""
    tokenizer = subject.model.tokenizer
    found = np.zeros(embeddings_of(subject).weight.shape[0], dtype=bool)
    ids = range(min(len(found), len(tokenizer)))
    texts = tokenizer.batch_decode([[one] for one in ids], clean_up_tokenization_spaces=False)
    for one, text in zip(ids, texts, strict=True):
        found[one] = bool(text) and text.isprintable() and "\ufffd" not in text
    found[[one for one in tokenizer.all_special_ids if one < len(found)]] = False
    return found


def random_tokens(insertion: Insertion, allowed: NDArray[np.bool_], count: int, rng: np.random.Generator) -> list[int]:
    """Random tokens whose text is read as just these in front of the first question for choosing.

    Raises:
        ModelError: None were found.
    """
    question = int(np.flatnonzero(insertion.subject.questions.is_for_choosing)[0])
    choices, found = np.flatnonzero(allowed), list[int]()
    for drawn in rng.choice(choices, count * _PATIENCE).tolist() if len(choices) else ():
        longer = [*found, drawn]
        text = insertion.context(question, decoded(insertion.subject, longer))
        if start_of(longer, insertion.tokenizer.encode(text)) is not None:
            found = longer
            if len(found) == count:
                return found
    raise ModelError(f"{insertion.subject.model.name}: no text was found that is read as {count} tokens it is made of")


def _reading(insertion: Insertion, text: str, step: int | None, figures: dict[str, Any]) -> Reading:
    """All questions asked after a text; those that are too long with it are asked without their beginning."""
    subject, prompts = insertion.subject, insertion.prompts(text)
    requests = insertion.tokenizer.encode_requests(prompts, subject.questions.options.length(subject.model))
    figures = {"text": text, **figures, "questions cut": requests.truncation()[0]}
    return Reading(answers=subject.ask(prompts), step=step, figures=figures)
