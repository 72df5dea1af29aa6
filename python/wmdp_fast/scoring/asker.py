"""Asking a server about one question: in one request if its choices are one token each, else in one for each choice.

What a server says of a prompt's own tokens is held against what it says of the next token before it is trusted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast.exceptions import ModelError
from wmdp_fast.scoring.completion import (
    AnswerError,
    Place,
    likeliest,
    logprobs_of,
    of_echo,
    of_echoed_text,
    of_prompt,
    spelled,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.scoring.server import Client, Server

# A server's log-probabilities of a prompt are compared with those it gives for the next token, for so many questions,
# and may differ by so many nats: those of 16-bit numbers differ a little with the batch they are computed in.
_TRIALS, _TOLERANCE = 3, 0.2


@dataclass(frozen=True)
class AskedQuestion:
    """A question of a task, its number in the run, and where its choices are among those of the run."""

    number: int
    task: int
    index: int
    first: int
    num_choices: int


@dataclass(frozen=True)
class AskedAnswer:
    """What a server said of a question's choices.

    Attributes:
        loglikelihood: Of each choice, in nats.
        is_greedy: Whether each choice is what greedy decoding gives.
        tokens: Tokens of the prompts that were sent.
        bounded: Choices, by number, whose log-likelihood is only known not to be larger.
        by_prompt: Whether it rests on what the server says of a prompt's own tokens.
    """

    loglikelihood: list[float]
    is_greedy: list[bool]
    tokens: int
    bounded: Sequence[int] = ()
    by_prompt: bool = False


def numbered(prompts: Sequence[Prompts]) -> list[AskedQuestion]:
    """The questions of all tasks, one task after the other."""
    found: list[AskedQuestion] = []
    first = 0
    for task, own in enumerate(prompts):
        for index in range(len(own)):
            num_choices = len(own.choices(index))
            found.append(AskedQuestion(len(found), task, index, first, num_choices))
            first += num_choices
    return found


class Asker:
    """Asks about one question after the other; several threads may."""

    def __init__(self, server: Server, client: Client, prompts: Sequence[Prompts], requests: Requests | None) -> None:
        self._server = server
        self._client = client
        self._prompts = prompts
        self._requests = requests
        self._by_id = server.protocol == "vllm"
        self._trials: float = _TRIALS
        self._trial = Lock()

    @property
    def is_trusted(self) -> bool:
        """Whether what the server says of a prompt's own tokens has been tried out, and was right."""
        return self._trials == 0

    @property
    def is_stopped(self) -> bool:
        """Whether no more is asked."""
        return self._client.is_stopped

    def stop(self) -> None:
        """Asks about no other question from now on; those under way have some seconds left."""
        self._client.stop()

    def cut(self) -> None:
        """Gives up what is under way."""
        self._client.cut()

    def __call__(self, question: AskedQuestion) -> AskedAnswer | None:
        """Asks about a question, with one request if its choices are one token each; once stopped, returns None.

        Raises:
            ModelError: As `score_served` says.
        """
        if self.is_stopped:
            return None
        try:
            return self._ask(question)
        except ModelError as error:
            raise ModelError(f"question {question.index + 1} of task {question.task + 1}: {error}") from error

    def _ask(self, question: AskedQuestion) -> AskedAnswer:
        own = self._prompts[question.task]
        texts = [own.continuation(question.index, choice) for choice in range(question.num_choices)]
        if self._requests is None:
            context = own.context(question.index)
            # lm-eval's rule: white space at a context's end belongs to the continuation.
            stripped = context.rstrip()
            in_text = [_Text(stripped, context[len(stripped) :] + text) for text in texts]
            if any(len(choice) != 1 for choice in own.choices(question.index)):
                return self._each(in_text)
            return self._at_once(context, texts, in_text)
        tokens = self._requests.context(question.number).tolist()
        of_choice = [
            self._requests.continuation(question.first + choice).tolist() for choice in range(question.num_choices)
        ]
        length = self._requests.max_length
        in_tokens = [_Tokens(tokens, one, length, text) for one, text in zip(of_choice, texts, strict=True)]
        if any(len(one) != 1 for one in of_choice):
            return self._each(in_tokens)
        names = [f"token_id:{token}" for [token] in of_choice] if self._by_id else texts
        ids = [token for [token] in of_choice]
        return self._at_once(tokens[-length:], names, in_tokens, ids)

    def _at_once(
        self,
        context: str | list[int],
        names: Sequence[str],
        choices: Sequence[_Text | _Tokens],
        ids: Sequence[int] = (),
    ) -> AskedAnswer:
        """Asks for the next token, which each of the choices may be."""
        top, tokens = self._next_token(context, ids)
        found = [top.get(name) if self._by_id else _of_text(name, top) for name in names]
        best = max(top.values())
        values = [value for value in found if value is not None]
        absent = [place for place, value in enumerate(found) if value is None]
        if absent and self._server.about_missing == "ask":
            asked = {place: self._whole(choices[place], first=place == absent[0]) for place in absent}
            return AskedAnswer(
                [asked[place][0] if value is None else value for place, value in enumerate(found)],
                [asked[place][1] if value is None else value == best for place, value in enumerate(found)],
                tokens + sum(one[2] for one in asked.values()),
                by_prompt=True,
            )
        if absent and (self._server.about_missing == "error" or not values):
            listed = ", ".join(choices[place].text.strip() for place in absent)
            one = len(absent) == 1
            raise ModelError(
                f"{'the letter' if one else 'the letters'} {listed} {'is' if one else 'are'} not among the"
                f" {len(top)} likeliest tokens that {self._server.base_url} gave: ask for more (--top-logprobs, now"
                f" {self._server.top_logprobs}; vLLM must be started with --max-logprobs as large), or for each letter"
                " by itself (--missing-letters ask)"
                + (", or pass --missing-letters bound if predictions are enough" if values else "")
            )
        bound = min(top.values())
        return AskedAnswer(
            [bound if value is None else value for value in found],
            [value is not None and value == best for value in found],
            tokens,
            bounded=absent,
        )

    def _each(self, choices: Sequence[_Text | _Tokens]) -> AskedAnswer:
        """Asks for each choice by itself."""
        asked = [self._whole(choice, first=place == 0) for place, choice in enumerate(choices)]
        return AskedAnswer(
            [one[0] for one in asked], [one[1] for one in asked], sum(one[2] for one in asked), by_prompt=True
        )

    def _next_token(self, prompt: str | list[int], ids: Sequence[int] = ()) -> tuple[dict[str, float], int]:
        """The likeliest next tokens with their log-probabilities, and the number of tokens of the prompt."""
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": self._server.top_logprobs,
        }
        if self._by_id:
            body["return_tokens_as_token_ids"] = True
            if ids:
                # Later versions give these, and the likeliest one, in place of the likeliest ones; earlier ones ignore
                # it.
                body["logprob_token_ids"] = list(dict.fromkeys(ids))
        choice, tokens = self._client.completion(body)
        try:
            given = logprobs_of(choice)
            tops = [] if given is None else likeliest(given)
        except AnswerError as error:
            raise ModelError(
                f"{self._server.base_url} gave no log-probabilities that could be read"
                f" ({self._client.shown(str(error))}): use another server"
            ) from error
        if not tops and given is not None and choice.get("finish_reason") == "stop":
            raise ModelError(
                f"{self._server.base_url} gives no log-probabilities where the likeliest next token is the end of the"
                f" text, as it is after {str(prompt)[-40:]!r}: ask in a way that the model answers (--num-fewshot,"
                " --apply-chat-template), or serve it with another server, such as vLLM"
            )
        if not tops or not tops[0]:
            raise ModelError(
                f"{self._server.base_url} gave no log-probabilities: start it so that it does (the server of"
                " llama-cpp-python: --logits_all true; vLLM: --max-logprobs), or use another server"
            )
        if self._by_id and not all(name.startswith("token_id:") for name in tops[0]):
            raise ModelError(
                f"{self._server.base_url} does not name tokens by their number, as vLLM does"
                " (return_tokens_as_token_ids): use --engine openai"
            )
        return tops[0], tokens

    def _whole(self, choice: _Text | _Tokens, *, first: bool) -> tuple[float, bool, int]:
        """A choice's log-likelihood, whether it is greedy, and the number of tokens read for it.

        `first` says that it is the first choice of its question that is asked for in this way.
        """
        prompt = choice.prompt
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
        body |= {"prompt_logprobs": 1} if self._by_id else {"echo": True, "logprobs": 1}
        answer, tokens = self._client.completion(body)
        try:
            scored = self._scored(choice, answer)
        except AnswerError as error:
            what = "the log-probabilities of a prompt's own tokens (prompt_logprobs)" if self._by_id else "echo"
            raise ModelError(
                f"{choice.text!r} must be asked for with {what}, which {self._server.base_url} does not do"
                f" as it should: {self._client.shown(str(error))}. Ask questions that are answered with letters"
                " (--choices letters), or use"
                + (" another server" if self._by_id else " vLLM (--engine vllm), or name the model's --tokenizer")
            ) from error
        if first:
            self._try_out(choice, scored[0])
        return sum(value for value, _ in scored), all(value == max(top.values()) for value, top in scored), tokens

    def _scored(self, choice: _Text | _Tokens, answer: Mapping[str, Any]) -> list[Place]:
        """What an answer says of a choice's tokens; raises an AnswerError if it does not."""
        if isinstance(choice, _Text):
            return of_echoed_text(answer, choice.context, choice.text)
        if self._by_id:
            return of_prompt(answer, len(choice.prompt), choice.continuation)
        return of_echo(answer, len(choice.prompt), len(choice.continuation))

    def _try_out(self, choice: _Text | _Tokens, first: Place) -> None:
        """Holds what a server says within a prompt against what it says at its end, for the first few questions.

        Some give each token the log-probability that belongs to the next one.
        """
        with self._trial:
            if self._trials == 0:
                return
            value, within = first
            top, _ = self._next_token(choice.context)
            after = {spelled(token): value for token, value in reversed(top.items())}
            best, here = (max(one.items(), key=lambda item: item[1]) for one in (top, within))
            # Of two that are equally likely, either may come first.
            known = after.get(spelled(here[0]), -np.inf)
            if max(abs(known - here[1]), abs(best[1] - here[1])) > _TOLERANCE or value > here[1]:
                # Others may agree by chance: it is not to be trusted any more.
                self._trials = math.inf
                names = [self._client.shown(repr(name), most=60) for name in (best[0], here[0])]
                raise ModelError(
                    f"the likeliest token after the question is {names[0]} ({best[1]:.3f}), but"
                    f" {names[1]} ({here[1]:.3f}) by what {self._server.base_url} says of a prompt's own tokens, so"
                    " these are wrong: this server cannot be asked for choices of several tokens"
                )
            self._trials -= 1


@dataclass(frozen=True)
class _Text:
    """A choice as text: what stands before it, without white space at its end, and the choice with that."""

    context: str
    text: str

    @property
    def prompt(self) -> str:
        return self.context + self.text


@dataclass(frozen=True)
class _Tokens:
    """A choice as tokens, the leftmost of which are cut off where a model cannot read them all."""

    full_context: list[int]
    continuation: list[int]
    max_length: int
    text: str

    @property
    def prompt(self) -> list[int]:
        return (self.full_context + self.continuation)[-self.max_length - 1 :]

    @property
    def context(self) -> list[int]:
        return self.prompt[: -len(self.continuation)]


def _of_text(continuation: str, top: Mapping[str, float]) -> float | None:
    """The log-probability of the token that is a continuation.

    Some servers leave out the space that a token begins with: with those, it is that of the token which is the
    continuation without it.
    """
    found: dict[str, float] = {}
    for token, value in top.items():
        name = spelled(token)
        found[name] = max(value, found.get(name, value))
    if continuation in found or any(name.startswith(" ") for name in found):
        return found.get(continuation)
    return found.get(continuation.strip())
