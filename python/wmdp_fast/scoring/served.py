"""Scoring with a model that is served elsewhere, over an OpenAI-compatible `/v1/completions`.

vLLM, SGLang, llama.cpp's server, text-generation-inference and OpenAI itself answer it. A question whose choices are
one token each, such as letters, is one request: for the next token after the prompt, with the log-probabilities of the
likeliest tokens. Choices of several tokens are one request each: for the log-probabilities of the prompt's own tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wmdp_fast._rust import __version__
from wmdp_fast.exceptions import ModelError
from wmdp_fast.prompts.tokenizer import prefix_token_id
from wmdp_fast.scoring.backend import ModelRecord
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
from wmdp_fast.scoring.scores import PartialScores, Scores
from wmdp_fast.scoring.server import Client, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests

# A server's log-probabilities of a prompt are compared with those it gives for the next token, for so many questions,
# and may differ by so many nats: those of 16-bit numbers differ a little with the batch they are computed in.
_TRIALS, _TOLERANCE = 3, 0.2

# More tokens than a model reads at once.
_MOST_LENGTH = 1 << 31


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has been found to serve; `Backend` describes what it offers.

    Attributes:
        server: Where.
        tokenizer: Its tokenizer of transformers, to send tokens; None to send text, which the server tokenizes.
        max_length: Maximum sequence length of the model, or None if nobody said.
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
        return None if self.tokenizer is None else prefix_token_id(self.tokenizer)

    @property
    def model_type(self) -> str:
        """Nothing: its architecture is the server's business."""
        return ""

    @property
    def dtype(self) -> None:
        """None: nobody said."""
        return

    @property
    def attention(self) -> None:
        """None: nobody said."""
        return

    @property
    def warnings(self) -> Sequence[str]:
        """None: nothing was loaded here but a tokenizer."""
        return ()

    @property
    def progress(self) -> tuple[str, str]:
        """A server is asked by the question."""
        return "question", "asking"

    def identity(self, requests: Requests | None, prompts: Sequence[Prompts]) -> dict[str, Any]:
        """The server and what it is asked: it is trusted to serve the same model as before under the same name."""
        asked = _content_hash(prompts) if requests is None else requests.content_hash
        return {
            "base url": self.server.base_url,
            "served model": self.server.model,
            "engine": self.server.protocol,
            "missing letters": self.server.about_missing,
            "questions and their text" if requests is None else "questions and their tokens": asked,
            "wmdp_fast": __version__,
        }

    def record(self) -> ModelRecord:
        """What lm-eval's `local-completions` records."""
        arguments: dict[str, Any] = {"model": self.server.model, "base_url": self.server.base_url}
        if self.tokenizer is not None:
            arguments["tokenizer"] = self.tokenizer.name_or_path
        return ModelRecord(model="local-completions", model_args=arguments)

    def check_tokens(self, requests: Requests, name_of: Callable[[int], str]) -> None:
        """Nothing is checked here: the server refuses tokens that its model does not know."""

    def score(
        self,
        prompts: Sequence[Prompts],
        requests: Requests | None,
        *,
        progress: Callable[[int, int], None],
        partial: PartialScores,
    ) -> ServedScores:
        """Asks the server; see `score_served`."""
        return score_served(self.server, prompts, requests=requests, progress=progress, partial=partial)

    def score_windows(
        self,
        requests: Requests,  # noqa: ARG002
        *,
        progress: Callable[[int, int], None],  # noqa: ARG002
        partial: PartialScores,  # noqa: ARG002
    ) -> ServedScores:
        """Raises TypeError: a server is asked about answers to questions alone."""
        raise TypeError("a served model reads no texts")


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
        tokenizer = _told_tokenizer(client, told.get("root") or server.model)
    limit = told.get("max_model_len")
    # The token that is asked for must fit too, and a choice's last one, which a model in memory need not read.
    length = min(limit, _MOST_LENGTH) - 2 if isinstance(limit, int) and limit > 2 else None
    if tokenizer is None:
        return ServedModel(server, None, length)
    from wmdp_fast.exceptions import TokenizerError
    from wmdp_fast.models.tokenizer_only import load_tokenizer

    try:
        loaded = load_tokenizer(tokenizer)
    except TokenizerError as error:
        error.add_note(f"name the tokenizer of {server.model} with --tokenizer (tokenizer=): a folder or a hub name")
        raise
    model = ServedModel(server, loaded, length)
    if model.prefix_token_id is None:
        raise TokenizerError(f"the tokenizer of {server.model} has neither a BOS nor an EOS token; set one")
    return model


def _told_tokenizer(client: Client, root: object) -> str:
    """The tokenizer's name that a server told, if it can be one; it is written down, and asked the hub for."""
    shown = client.shown(str(root), most=1000)
    if root != shown:
        raise ModelError(
            f"{client.server.base_url} says that its model comes from {shown!r}, which is no folder or hub name: name"
            " its tokenizer with --tokenizer (tokenizer=)"
        )
    return shown


@dataclass(frozen=True)
class ServedScores(Scores):
    """The scores of a served model, and what they took.

    Attributes:
        server: Where it is served, and how it was asked.
        sent: What the prompts were sent as.
        requests: Requests sent, those sent again included.
        repeated: Of those, how many were sent again.
        bounded: Choices that were not among the likeliest tokens and got the least of their log-probabilities.
    """

    _: KW_ONLY
    server: Server
    sent: Literal["text", "tokens"]
    requests: int
    repeated: int
    bounded: int

    def cost(self) -> dict[str, Any]:
        """What results say they cost; where a server was asked there were no batches of tokens."""
        return {"tokens_run": self.tokens_run, "tokens_useful": self.tokens_useful}

    def source(self) -> dict[str, Any]:
        """The server and how it was asked."""
        server = {
            "base_url": self.server.base_url,
            "model": self.server.model,
            "sent": self.sent,
            "top_logprobs": self.server.top_logprobs,
            "missing_letters": self.server.about_missing,
            "choices_bounded": self.bounded,
            "concurrency": self.server.concurrency,
            "requests": self.requests,
            "requests_repeated": self.repeated,
        }
        return {"server": server}


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
    return ServedScores(
        **vars(scores),
        server=server,
        sent="text" if requests is None else "tokens",
        requests=client.sent,
        repeated=client.repeated,
        bounded=len(partial.bounded),
    )


def _content_hash(prompts: Sequence[Prompts]) -> str:
    """SHA-256 of what is asked, as text."""
    content = hashlib.sha256()
    for own in prompts:
        for index in range(len(own)):
            texts = [own.continuation(index, choice) for choice in range(len(own.choices(index)))]
            content.update(json.dumps([own.context(index), texts]).encode())
    return content.hexdigest()


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
        try:
            return self._ask(question)
        except ModelError as error:
            raise ModelError(f"question {question.index + 1} of task {question.task + 1}: {error}") from error

    def _ask(self, question: _Question) -> _Answer:
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
    ) -> _Answer:
        """Asks for the next token, which each of the choices may be."""
        top, tokens = self._next_token(context, ids)
        found = [top.get(name) if self._by_id else _of_text(name, top) for name in names]
        best = max(top.values())
        values = [value for value in found if value is not None]
        absent = [place for place, value in enumerate(found) if value is None]
        if absent and self._server.about_missing == "ask":
            asked = {place: self._whole(choices[place], first=place == absent[0]) for place in absent}
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
                f"{'the letter' if one else 'the letters'} {listed} {'is' if one else 'are'} not among the"
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

    def _each(self, choices: Sequence[_Text | _Tokens]) -> _Answer:
        """Asks for each choice by itself."""
        asked = [self._whole(choice, first=place == 0) for place, choice in enumerate(choices)]
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
