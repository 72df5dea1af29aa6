"""Scoring with a model that is served elsewhere: one request a question to an OpenAI-compatible `/v1/completions`.

vLLM, SGLang, llama.cpp's server, text-generation-inference and OpenAI itself answer it. Asked is the next token after
the prompt and the `top_logprobs` likeliest ones; the letters' log-probabilities are read from those. So only questions
that are answered with a letter can be scored, and a letter has to be among the likeliest tokens.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.scores import PartialScores, Scores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from wmdp_fast._rust import Prompts, Requests

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0

# How vocabularies write a space at the beginning of a token, where a server does not decode it.
_SPACES = " \u0120\u2581"


@dataclass(frozen=True)
class Server:
    """Where a model is served, and how patient to be with it.

    Attributes:
        base_url: As OpenAI's clients take it, `http://127.0.0.1:8000/v1`.
        model: The model's name there.
        api_key: Sent as bearer token, if any.
        top_logprobs: How many of the likeliest tokens to ask for. OpenAI gives 5; vLLM 20, unless it was started with a
            larger `--max-logprobs`.
        timeout: Seconds to wait for an answer.
        retries: How often a request is sent again that failed for a reason that may pass: 408, 429, 5xx, a connection
            that was refused, cut or silent.
    """

    base_url: str
    model: str
    api_key: str | None = None
    top_logprobs: int = 20
    timeout: float = 120.0
    retries: int = 6


def score_served(
    server: Server,
    prompts: Sequence[Prompts],
    *,
    requests: Requests | None = None,
    concurrency: int = 32,
    missing: Literal["error", "bound"] = "error",
    progress: Callable[[int, int], None] | None = None,
    partial: PartialScores | None = None,
) -> Scores:
    """Scores all questions of a run; those of a task follow those of the task before.

    Args:
        server: Where to ask.
        prompts: The prompts of each task, answered with letters.
        requests: The same prompts as tokens, to send those. Without, the server tokenizes the text, and BOS is up to
            it.
        concurrency: Most requests at once.
        missing: What to do about a letter that is not among the likeliest tokens: an `"error"`, or, if another letter
            of the question is, `"bound"`: take the least of the log-probabilities given, which it cannot exceed. Then
            predictions are right and log-likelihoods may be too high.
        progress: Called after each question with the number finished and of all.
        partial: Where scores are entered as they are finished, for a caller that wants them even if the run ends with
            an error. Questions that are finished in it are not asked again.

    Raises:
        ModelError: The server refuses, keeps failing, gives no log-probabilities, or not those of the letters. The
            message says what to do.
        ValueError: A question is not answered with letters, or an option is impossible.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    questions = _numbered(prompts)
    for question in questions:
        _check_letters(prompts[question.task], question.index)
    num_choices = sum(one.num_choices for one in prompts)
    partial = PartialScores.empty(num_choices) if partial is None else partial
    finished = partial.finished
    asked = [(number, one) for number, one in enumerate(questions) if not finished[one.first]]
    begin = time.perf_counter()
    run = _Run(server, missing)
    done = len(questions) - len(asked)

    def ask(number: int, question: _Question) -> tuple[_Question, dict[str, float], list[str], int]:
        own = prompts[question.task]
        text: str | list[int] = own.context(question.index)
        if requests is not None:
            text = requests.context(number)[-requests.max_length :].tolist()
        continuations = [own.continuation(question.index, choice) for choice in range(len(own.choices(question.index)))]
        top, tokens = run.next_token(text)
        return question, top, continuations, tokens

    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="wmdp-fast-ask") as pool:
        pending = {pool.submit(ask, number, question) for number, question in asked}
        try:
            while pending:
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in ready:
                    question, top, continuations, tokens = future.result()
                    where = f"question {question.index + 1} of task {question.task + 1}"
                    _enter(partial, question.first, continuations, top, missing, where, server)
                    partial.tokens_run += tokens
                    partial.batches += 1
                    done += 1
                    if progress is not None:
                        progress(done, len(questions))
        finally:
            run.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            partial.seconds += time.perf_counter() - begin
    return partial.scores(tokens_useful=partial.tokens_run, token_budget=concurrency, engine="served")


@dataclass(frozen=True)
class _Question:
    """A question of a task, and its first choice among those of the run."""

    task: int
    index: int
    first: int


def _numbered(prompts: Sequence[Prompts]) -> list[_Question]:
    found = []
    first = 0
    for task, own in enumerate(prompts):
        for index in range(len(own)):
            found.append(_Question(task, index, first))
            first += len(own.choices(index))
    return found


def _check_letters(prompts: Prompts, index: int) -> None:
    for choice in prompts.choices(index):
        if len(choice) != 1:
            raise ValueError(
                f"question {index + 1} is answered with {choice!r}; a server can only be asked for single letters"
            )


def _enter(
    partial: PartialScores,
    first: int,
    continuations: Sequence[str],
    top: Mapping[str, float],
    missing: Literal["error", "bound"],
    where: str,
    server: Server,
) -> None:
    """Enters the log-probabilities of a question's letters.

    Raises:
        ModelError: A letter is not among the tokens that the server gave.
    """
    found = [_of_letter(continuation, top) for continuation in continuations]
    absent = [text.strip() for text, value in zip(continuations, found, strict=True) if value is None]
    if absent and (missing == "error" or len(absent) == len(continuations)):
        raise ModelError(
            f"{where}: the letter{'s' * (len(absent) > 1)} {', '.join(absent)} {'are' if len(absent) > 1 else 'is'} not"
            f" among the {len(top)} likeliest tokens that {server.base_url} gave: ask for more (top_logprobs, now"
            f" {server.top_logprobs}; vLLM must be started with --max-logprobs as large)"
            + ("" if len(absent) == len(continuations) else ", or pass missing='bound' if predictions are enough")
        )
    bound = min(top.values())
    best = max(top.values())
    for offset, value in enumerate(found):
        partial.is_greedy[first + offset] = value is not None and value == best
        # Last, as it is what makes the choice count as finished.
        partial.loglikelihood[first + offset] = bound if value is None else value


def _of_letter(continuation: str, top: Mapping[str, float]) -> float | None:
    """A letter's log-probability.

    That of the token that is the continuation, space included, else of the likeliest that is the letter but for spaces.
    """
    if continuation in top:
        return top[continuation]
    letter = continuation.strip()
    return max((value for token, value in top.items() if token.strip(_SPACES) == letter), default=None)


class _PassingError(Exception):
    """A failure that may not happen again."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


class _Run:
    """Connections to a server, one a thread, which are kept open between requests."""

    def __init__(self, server: Server, missing: str) -> None:
        if missing not in ("error", "bound"):
            raise ValueError(f"missing must be error or bound, not {missing}")
        url = urlsplit(server.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url must be like http://127.0.0.1:8000/v1, not {server.base_url!r}")
        self.server = server
        self.stop = threading.Event()
        self._local = threading.local()
        self._connect = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = url.hostname, url.port
        self._path = f"{url.path.rstrip('/')}/completions"

    def next_token(self, prompt: str | list[int]) -> tuple[dict[str, float], int]:
        """The likeliest next tokens with their log-probabilities, and the number of tokens of the prompt.

        Raises:
            ModelError: The server refuses or keeps failing.
        """
        body = {
            "model": self.server.model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": self.server.top_logprobs,
        }
        pause = _FIRST_WAIT
        for attempt in range(self.server.retries + 1):
            try:
                return self._read(self._post(json.dumps(body).encode()))
            except _PassingError as error:
                problem = error
            if attempt < self.server.retries:
                # Not all threads at the same time again.
                asked = problem.wait if problem.wait is not None else pause * random.uniform(0.5, 1.5)  # noqa: S311
                if self.stop.wait(min(asked, _LONGEST_WAIT)):
                    break
                pause = min(2 * pause, _LONGEST_WAIT)
        raise ModelError(f"{self.server.base_url} keeps failing ({attempt + 1} times), at last with: {problem}")

    def _post(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.server.api_key is not None:
            headers["Authorization"] = f"Bearer {self.server.api_key}"
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect(self._host, self._port, timeout=self.server.timeout)
        try:
            connection.request("POST", self._path, body, headers)
            response = connection.getresponse()
            status, text = response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _PassingError(f"{type(error).__name__}: {error}") from error
        if status in (408, 429) or status >= 500:
            after = response.headers.get("Retry-After", "")
            raise _PassingError(f"HTTP {status}: {text[:200]}", float(after) if after.isdecimal() else None)
        if status != 200:
            raise ModelError(f"{self.server.base_url} refuses (HTTP {status}): {text[:500]}")
        try:
            return json.loads(text)
        except ValueError as error:
            raise _PassingError(f"an answer that is no JSON: {text[:200]!r}") from error

    def _read(self, answer: Any) -> tuple[dict[str, float], int]:
        try:
            [choice] = answer["choices"]
            given = choice["logprobs"]
            tops = given["top_logprobs"] if given is not None else None
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{self.server.base_url} gave no completion: {json.dumps(answer)[:300]}") from error
        if not tops or not tops[0]:
            raise ModelError(
                f"{self.server.base_url} gave no log-probabilities: start it so that it does (the server of"
                " llama-cpp-python: --logits_all true; vLLM: --max-logprobs), or use another server"
            )
        usage = answer.get("usage") or {}
        return {token: float(value) for token, value in tops[0].items()}, int(usage.get("prompt_tokens") or 0)
