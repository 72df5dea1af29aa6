"""Scoring with a model that is served elsewhere, over an OpenAI-compatible `/v1/completions`.

vLLM, SGLang, llama.cpp's server, text-generation-inference and OpenAI itself answer it. A question whose choices are
one token each, such as letters, is one request: for the next token after the prompt, with the log-probabilities of the
likeliest tokens. Choices of several tokens are one request each: for the log-probabilities of the prompt's own tokens.
"""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wmdp_fast._rust import __version__
from wmdp_fast.exceptions import ModelError
from wmdp_fast.prompts.tokenizer import prefix_token_id
from wmdp_fast.scoring.asker import AskedAnswer, AskedQuestion, Asker, numbered
from wmdp_fast.scoring.backend import ModelRecord
from wmdp_fast.scoring.scores import PartialScores, Scores
from wmdp_fast.scoring.server import Client, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.scoring.ranks import Ranks

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

    def sharing_with(self, ranks: Ranks) -> ServedModel:  # noqa: ARG002
        """Itself: nothing is read here."""
        return self

    def read_along(self, meanwhile: Callable[[], object]) -> None:
        """Nothing is read here."""

    def estimate(self, requests: Requests | None, shards: int) -> None:
        """How long a server takes is not known."""

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
    questions = numbered(prompts)
    num_choices = sum(one.num_choices for one in prompts)
    partial = PartialScores.empty(num_choices) if partial is None else partial
    begin = time.perf_counter()
    client = Client(server)
    asker = Asker(server, client, prompts, requests)
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


def _out_of_reach(asker: Asker, ask: Callable[[], None]) -> None:
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
    asker: Asker,
    questions: Sequence[AskedQuestion],
    partial: PartialScores,
    concurrency: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Asks the questions that are not finished, several at once, and enters the answers as they come."""
    finished = partial.finished
    asked = [one for one in questions if not finished[one.first : one.first + one.num_choices].all()]
    waiting, done = iter(asked), len(questions) - len(asked)
    # Answers that are worth nothing if the server turns out to give wrong ones.
    held: list[tuple[AskedQuestion, AskedAnswer]] = []
    running: dict[Future[AskedAnswer | None], AskedQuestion] = {}
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
    partial: PartialScores, answers: Sequence[tuple[AskedQuestion, AskedAnswer]], *, trusted: bool
) -> list[tuple[AskedQuestion, AskedAnswer]]:
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
