"""Scoring with a model that is served elsewhere, over an OpenAI-compatible `/v1/completions`.

vLLM, SGLang, llama.cpp's server, text-generation-inference and OpenAI itself answer it. A question whose choices are
one token each, such as letters, is one request: for the next token after the prompt, with the log-probabilities of the
likeliest tokens. Choices of several tokens are one request each: for the log-probabilities of the prompt's own tokens.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.scores import PartialScores, Scores
from wmdp_fast.models.server import Client, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests

# How vocabularies write a space at the beginning of a token, where a server does not decode it.
_SPACES = ("\u0120", "\u2581")

# A server's log-probabilities of a prompt are compared with those it gives for the next token, for so many questions,
# and may differ by so many nats: those of 16-bit numbers differ a little with the batch they are computed in.
_TRIALS, _TOLERANCE = 3, 0.2


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has been found to serve.

    Attributes:
        server: Where.
        tokenizer: Its tokenizer of transformers, to send tokens; None to send text, which the server tokenizes.
        max_length: Most tokens it reads at once, or None if nobody said.
    """

    server: Server
    tokenizer: PreTrainedTokenizerBase | None
    max_length: int | None

    @property
    def name(self) -> str:
        """The model's name on the server."""
        return self.server.model

    @property
    def prefix_token_id(self) -> int | None:
        """Token that stands for an empty context, by lm-eval's rule: BOS, else EOS."""
        if self.tokenizer is None:
            return None
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        prefix: int | None = eos if bos is None else bos
        return prefix


def connect(server: Server, tokenizer: PreTrainedTokenizerBase | str | None = None) -> ServedModel:
    """Asks a server whether it serves the model, and loads the model's tokenizer if tokens are to be sent.

    Args:
        server: Where to ask.
        tokenizer: The model's tokenizer, a folder with it or its name on the hub. For vLLM, None takes the one that the
            server says the model comes with, else the model's name.

    Raises:
        ModelError: The server cannot be reached, refuses the key or does not serve the model; the message says what to
            do.
        TokenizerError: The tokenizer cannot be loaded, or has neither BOS nor EOS.
    """
    client = Client(server)
    try:
        told = client.served_model() or {}
    finally:
        client.close()
    if tokenizer is None and server.protocol == "vllm":
        tokenizer = str(told.get("root") or server.model)
    limit = told.get("max_model_len")
    # The token that is asked for must fit too, and a choice's last one, which a model in memory need not read.
    length = int(limit) - 2 if isinstance(limit, int) and limit > 2 else None
    if tokenizer is None:
        return ServedModel(server, None, length)
    from wmdp_fast.exceptions import TokenizerError
    from wmdp_fast.models.load import load_tokenizer

    try:
        loaded = load_tokenizer(tokenizer)
    except TokenizerError as error:
        error.add_note(f"name the tokenizer of {server.model} with --tokenizer (tokenizer=): a folder or a hub name")
        raise
    model = ServedModel(server, loaded, length)
    if model.prefix_token_id is None:
        raise TokenizerError(f"the tokenizer of {server.model} has neither a BOS nor an EOS token; set one")
    return model


@dataclass(frozen=True)
class ServedScores(Scores):
    """The scores of a served model, and what they took.

    Attributes:
        requests: Requests sent, those sent again included.
        repeated: Of those, how many were sent again.
        bounded: Choices that were not among the likeliest tokens and got the least of their log-probabilities.
    """

    requests: int = 0
    repeated: int = 0
    bounded: int = 0


def score_served(
    server: Server,
    prompts: Sequence[Prompts],
    *,
    requests: Requests | None = None,
    progress: Callable[[int, int], None] | None = None,
    partial: PartialScores | None = None,
) -> ServedScores:
    """Scores all questions of a run; those of a task follow those of the task before.

    On an error or Ctrl-C no more is asked, and what is under way is waited for, for some seconds, and entered too.

    Args:
        server: Where to ask.
        prompts: The prompts of each task.
        requests: The same prompts as tokens, to send those. Without, the server tokenizes the text, and BOS is up to
            it. vLLM's protocol needs them.
        progress: Called after each question with the number finished and of all.
        partial: Where scores are entered as they are finished, for a caller that wants them even if the run ends with
            an error. Questions that are finished in it are not asked again.

    Raises:
        ModelError: The server refuses, keeps failing, or gives no log-probabilities, not those of the choices, or wrong
            ones. The message says what to do.
        ValueError: vLLM is to be asked without tokens.
    """
    if server.protocol == "vllm" and requests is None:
        raise ValueError("vLLM is asked by tokens: pass requests, the prompts tokenized")
    questions = _numbered(prompts)
    num_choices = sum(one.num_choices for one in prompts)
    partial = PartialScores.empty(num_choices) if partial is None else partial
    begin = time.perf_counter()
    client = Client(server)
    asker = _Asker(server, client, prompts, requests)
    try:
        _out_of_reach(asker, lambda: _ask_all(asker, questions, partial, server.concurrency, progress))
    finally:
        client.close()
        partial.seconds += time.perf_counter() - begin
    scores = partial.scores(tokens_useful=partial.tokens_run, token_budget=server.concurrency, engine=server.protocol)
    return ServedScores(**vars(scores), requests=client.sent, repeated=client.repeated, bounded=len(partial.bounded))


def _out_of_reach(asker: _Asker, ask: Callable[[], None]) -> None:
    """Asks in another thread; Ctrl-C, which only reaches the main one, never comes between an answer and its entry."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="wmdp-fast-enter") as alone:
        try:
            alone.submit(ask).result()
        except BaseException:
            try:
                asker.stop()
                alone.shutdown()
            finally:
                # The second Ctrl-C waits for nothing.
                asker.cut()
            raise


def _ask_all(
    asker: _Asker,
    questions: Sequence[_Question],
    partial: PartialScores,
    concurrency: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Asks the questions that are not finished, several at once, and enters the answers as they come."""
    finished = partial.finished
    asked = [one for one in questions if not finished[one.first : one.first + one.num_choices].all()]
    waiting, done = iter(asked), len(questions) - len(asked)
    # Answers that are worth nothing if the server turns out to give wrong ones.
    held: list[tuple[_Question, _Answer]] = []
    running: dict[Future[_Answer | None], _Question] = {}
    problem: BaseException | None = None
    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="wmdp-fast-ask") as pool:
        while True:
            if not asker.is_stopped:
                # Enough that no thread waits for this one, few enough that none is looked at too often.
                for question in islice(waiting, 2 * concurrency - len(running)):
                    running[pool.submit(asker, question)] = question
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                question = running.pop(future)
                try:
                    if (answer := future.result()) is None:
                        continue
                    held = _enter(partial, [*held, (question, answer)], trusted=asker.is_trusted)
                    done += 1
                    if progress is not None:
                        progress(done, len(questions))
                except BaseException as error:  # Raised at the end, when what is under way has been entered.
                    problem = problem or error
                    asker.stop()
    _enter(partial, held, trusted=asker.is_trusted or not asker.is_stopped)
    if problem is not None:
        raise problem


def _enter(
    partial: PartialScores, answers: Sequence[tuple[_Question, _Answer]], *, trusted: bool
) -> list[tuple[_Question, _Answer]]:
    """Enters answers, and returns those that must wait until the server is trusted."""
    held = []
    for question, answer in answers:
        if answer.by_prompt and not trusted:
            held.append((question, answer))
            continue
        choices = np.arange(question.first, question.first + question.num_choices)
        partial.enter(
            choices, np.array(answer.loglikelihood), np.array(answer.is_greedy), choices[list(answer.bounded)]
        )
        partial.tokens_run += answer.tokens
        partial.batches += 1
    return held


@dataclass(frozen=True)
class _Question:
    """A question of a task, its number in the run, and where its choices are among those of the run."""

    number: int
    task: int
    index: int
    first: int
    num_choices: int


@dataclass(frozen=True)
class _Answer:
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


def _numbered(prompts: Sequence[Prompts]) -> list[_Question]:
    found: list[_Question] = []
    first = 0
    for task, own in enumerate(prompts):
        for index in range(len(own)):
            num_choices = len(own.choices(index))
            found.append(_Question(len(found), task, index, first, num_choices))
            first += num_choices
    return found


class _Asker:
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

    def __call__(self, question: _Question) -> _Answer | None:
        """Asks about a question, with one request if its choices are one token each; once stopped, returns None.

        Raises:
            ModelError: As `score_served` says.
        """
        if self.is_stopped:
            return None
        own = self._prompts[question.task]
        texts = [own.continuation(question.index, choice) for choice in range(question.num_choices)]
        where = f"question {question.index + 1} of task {question.task + 1}"
        if self._requests is None:
            context = own.context(question.index)
            # lm-eval's rule: white space at a context's end belongs to the continuation.
            stripped = context.rstrip()
            in_text = [_Text(stripped, context[len(stripped) :] + text) for text in texts]
            if any(len(choice) != 1 for choice in own.choices(question.index)):
                return self._each(in_text, where)
            return self._at_once(context, texts, in_text, where)
        tokens = self._requests.context(question.number).tolist()
        of_choice = [
            self._requests.continuation(question.first + choice).tolist() for choice in range(question.num_choices)
        ]
        length = self._requests.max_length
        in_tokens = [_Tokens(tokens, one, length, text) for one, text in zip(of_choice, texts, strict=True)]
        if any(len(one) != 1 for one in of_choice):
            return self._each(in_tokens, where)
        names = [f"token_id:{token}" for [token] in of_choice] if self._by_id else texts
        ids = [token for [token] in of_choice]
        return self._at_once(tokens[-length:], names, in_tokens, where, ids)

    def _at_once(
        self,
        context: str | list[int],
        names: Sequence[str],
        choices: Sequence[_Text | _Tokens],
        where: str,
        ids: Sequence[int] = (),
    ) -> _Answer:
        """Asks for the next token, which each of the choices may be."""
        top, tokens = self._next_token(context, ids)
        found = [top.get(name) if self._by_id else _of_text(name, top) for name in names]
        best = max(top.values())
        values = [value for value in found if value is not None]
        absent = [place for place, value in enumerate(found) if value is None]
        if absent and self._server.about_missing == "ask":
            asked = {place: self._whole(choices[place], where, first=place == absent[0]) for place in absent}
            return _Answer(
                [asked[place][0] if value is None else value for place, value in enumerate(found)],
                [asked[place][1] if value is None else value == best for place, value in enumerate(found)],
                tokens + sum(one[2] for one in asked.values()),
                by_prompt=True,
            )
        if absent and (self._server.about_missing == "error" or not values):
            listed = ", ".join(choices[place].text.strip() for place in absent)
            one = len(absent) == 1
            raise ModelError(
                f"{where}: {'the letter' if one else 'the letters'} {listed} {'is' if one else 'are'} not among the"
                f" {len(top)} likeliest tokens that {self._server.base_url} gave: ask for more (--top-logprobs, now"
                f" {self._server.top_logprobs}; vLLM must be started with --max-logprobs as large), or for each letter"
                " by itself (--missing-letters ask)"
                + (", or pass --missing-letters bound if predictions are enough" if values else "")
            )
        bound = min(top.values())
        return _Answer(
            [bound if value is None else value for value in found],
            [value is not None and value == best for value in found],
            tokens,
            bounded=absent,
        )

    def _each(self, choices: Sequence[_Text | _Tokens], where: str) -> _Answer:
        """Asks for each choice by itself."""
        asked = [self._whole(choice, where, first=place == 0) for place, choice in enumerate(choices)]
        return _Answer(
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
        given = choice.get("logprobs")
        tops = _tops(given) if isinstance(given, dict) else []
        if not tops and isinstance(given, dict) and choice.get("finish_reason") == "stop":
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

    def _whole(self, choice: _Text | _Tokens, where: str, *, first: bool) -> tuple[float, bool, int]:
        """A choice's log-likelihood, whether it is greedy, and the number of tokens read for it.

        `first` says that it is the first choice of its question that is asked for in this way.
        """
        prompt = choice.prompt
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
        body |= {"prompt_logprobs": 1} if self._by_id else {"echo": True, "logprobs": 1}
        answer, tokens = self._client.completion(body)
        try:
            scored = _of_prompt(choice, answer) if self._by_id else _of_echo(choice, answer)
        except _NotGivenError as error:
            what = "the log-probabilities of a prompt's own tokens (prompt_logprobs)" if self._by_id else "echo"
            raise ModelError(
                f"{where}: {choice.text!r} must be asked for with {what}, which {self._server.base_url} does not do"
                f" as it should: {error}. Ask questions that are answered with letters (--choices letters), or use"
                + (" another server" if self._by_id else " vLLM (--engine vllm), or name the model's --tokenizer")
            ) from error
        if first:
            self._try_out(choice, scored[0], where)
        return sum(value for value, _ in scored), all(value == max(top.values()) for value, top in scored), tokens

    def _try_out(self, choice: _Text | _Tokens, first: tuple[float, Mapping[str, float]], where: str) -> None:
        """Holds what a server says within a prompt against what it says at its end, for the first few questions.

        Some give each token the log-probability that belongs to the next one.
        """
        with self._trial:
            if self._trials == 0:
                return
            value, within = first
            top, _ = self._next_token(choice.context)
            spelled = {_spelled(token): value for token, value in reversed(top.items())}
            likeliest, here = (max(one.items(), key=lambda item: item[1]) for one in (top, within))
            # Of two that are equally likely, either may come first.
            known = spelled.get(_spelled(here[0]), -np.inf)
            if max(abs(known - here[1]), abs(likeliest[1] - here[1])) > _TOLERANCE or value > here[1]:
                # Others may agree by chance: it is not to be trusted any more.
                self._trials = math.inf
                raise ModelError(
                    f"{where}: the likeliest token after the question is {likeliest[0]!r} ({likeliest[1]:.3f}), but"
                    f" {here[0]!r} ({here[1]:.3f}) by what {self._server.base_url} says of a prompt's own tokens, so"
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


class _NotGivenError(Exception):
    """An answer lacks what was asked for; the message says what."""


def _of_prompt(choice: _Text | _Tokens, answer: Mapping[str, Any]) -> list[tuple[float, dict[str, float]]]:
    """For each token of a choice its log-probability and those of the likeliest, from vLLM's `prompt_logprobs`."""
    if not isinstance(choice, _Tokens):
        raise TypeError("vLLM is asked by tokens")
    given = answer.get("prompt_logprobs")
    if not isinstance(given, list) or len(given) != len(choice.prompt):
        raise _NotGivenError(
            "it gave none" if not isinstance(given, list) else f"{len(given)} for {len(choice.prompt)} tokens"
        )
    found = []
    for token, place in zip(choice.continuation, given[-len(choice.continuation) :], strict=True):
        if not isinstance(place, dict) or str(token) not in place:
            raise _NotGivenError(f"token {token} is not among them")
        top = {f"token_id:{name}": float(one["logprob"]) for name, one in place.items()}
        found.append((top[f"token_id:{token}"], top))
    return found


def _of_echo(choice: _Text | _Tokens, answer: Mapping[str, Any]) -> list[tuple[float, dict[str, float]]]:
    """For each token of a choice its log-probability and those of the likeliest, from an echoed prompt."""
    given = answer.get("logprobs")
    if not isinstance(given, dict) or not isinstance(given.get("token_logprobs"), list):
        raise _NotGivenError("it gave no token_logprobs")
    values, tops = given["token_logprobs"], _tops(given)
    if len(tops) != len(values):
        raise _NotGivenError(f"{len(values)} token_logprobs and {len(tops)} top_logprobs")
    if isinstance(choice, _Tokens):
        stop = len(choice.prompt)
        # With one more for the token that was made, unless that is the end of the text.
        if len(values) not in (stop, stop + 1):
            raise _NotGivenError(f"{len(values)} token_logprobs for {stop} tokens")
        places = slice(stop - len(choice.continuation), stop)
    else:
        places = _places_of_text(choice, answer, given)
    found = [(value, top) for value, top in zip(values[places], tops[places], strict=True)]
    if any(value is None or not top for value, top in found):
        raise _NotGivenError("it gave no log-probability for one of its tokens")
    return [(float(value), top) for value, top in found]


def _places_of_text(choice: _Text, answer: Mapping[str, Any], given: Mapping[str, Any]) -> slice:
    """Which tokens of an echoed text are the choice: those from its first character to its last one."""
    text, tokens, offsets = answer.get("text"), given.get("tokens"), given.get("text_offset")
    if not isinstance(text, str) or not text.startswith(choice.prompt):
        raise _NotGivenError("the text it gave does not begin with the prompt")
    if not isinstance(tokens, list) or not isinstance(offsets, list) or len(tokens) != len(offsets):
        raise _NotGivenError("it does not say where its tokens begin (tokens, text_offset)")
    begin, end = len(choice.context), len(choice.prompt)
    ends = [*offsets, len(text)]
    if begin not in offsets or end not in ends:
        raise _NotGivenError("one of its tokens lies across the border between the question and the choice")
    places = slice(offsets.index(begin), ends.index(end))
    # Offsets may count a BOS that is not in the text. Parts of characters are not told.
    if _ascii("".join(map(str, tokens[places]))) != _ascii(choice.text):
        raise _NotGivenError(f"where {choice.text!r} should be it has {''.join(map(str, tokens[places]))!r}")
    return places


def _ascii(text: str) -> str:
    return _spelled("".join(text)).encode("ascii", "ignore").decode()


def _tops(given: Mapping[str, Any]) -> list[dict[str, float]]:
    """The likeliest tokens at each place, from either of the two forms that servers give them in."""
    if isinstance(content := given.get("content"), list):
        return [
            {str(one["token"]): float(one["logprob"]) for one in place.get("top_logprobs") or []} for place in content
        ]
    return [
        {str(token): float(value) for token, value in (place or {}).items() if value is not None}
        for place in given.get("top_logprobs") or []
    ]


def _spelled(token: str) -> str:
    """A token with its spaces as spaces."""
    for space in _SPACES:
        token = token.replace(space, " ")
    return token


def _of_text(continuation: str, top: Mapping[str, float]) -> float | None:
    """The log-probability of the token that is a continuation.

    Some servers leave out the space that a token begins with: with those, it is that of the token which is the
    continuation without it.
    """
    spelled: dict[str, float] = {}
    for token, value in top.items():
        name = _spelled(token)
        spelled[name] = max(value, spelled.get(name, value))
    if continuation in spelled or any(name.startswith(" ") for name in spelled):
        return spelled.get(continuation)
    return spelled.get(continuation.strip())
