"""Servers that are broken or hostile: each ends in right numbers or in one line that names the question, and soon."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import wmdp_fast as wf
from tests.support.served_stand_in import StandIn
from wmdp_fast import Server
from wmdp_fast.exceptions import JournalError, ModelError
from wmdp_fast.scoring import server as server_module
from wmdp_fast.scoring.journal import Journal
from wmdp_fast.scoring.scores import PartialScores
from wmdp_fast.scoring.served import connect, score_served
from wmdp_fast.scoring.server import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.served_stand_in import Handler

KEY = "sk-0123456789abcdef"
TIMEOUT = 0.5
QUESTIONS = wf.QuestionSet.from_rows(
    [{"question": f"Which moth is number {n}?", "choices": list("wxyz"), "answer": n % 4} for n in range(4)]
)
PROMPTS = [wf.PromptTemplate().render(QUESTIONS)]
TOP = {" A": -1.5, " B": -2.0, " the": -2.25, " C": -2.5, " D": -3.0}
EXPECTED = np.array([-1.5, -2.0, -2.5, -3.0] * 4)
RUN = {"model": "birds"}
# Titles, colors, a bell, a new line that looks like ours, right to left, and the key.
EVIL = f"\x1b]0;owned\x07\x1b[31mred\x1b[0m\r\nwarning: all is well\u202e\u2028\x9b Authorization: Bearer {KEY}"

Fault = "Callable[[Handler], bool]"


def completion(top: Any = TOP, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"text": " A", "logprobs": {"top_logprobs": [top]}, **choice}], "usage": {"prompt_tokens": 9}}


def raw(*parts: bytes, pause: float = 0.0) -> Callable[[Handler], bool]:
    """Writes bytes, and closes the connection."""

    def fault(handler: Handler) -> bool:
        try:
            for part in parts:
                handler.wfile.write(part)
                handler.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass
        handler.close_connection = True
        return True

    return fault


def endless(start: bytes, part: bytes, pause: float = 0.0) -> Callable[[Handler], bool]:
    """Goes on for much longer than anybody should wait."""

    def fault(handler: Handler) -> bool:
        try:
            handler.wfile.write(start)
            for _ in range(10**6):
                handler.wfile.write(part)
                handler.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass
        handler.close_connection = True
        return True

    return fault


def says(content: Any, status: int = 200, **headers: str) -> Callable[[Handler], bool]:
    return lambda handler: (handler.answer(status, content, **headers), True)[1]


def whole(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> Callable[[Handler], bool]:
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body), b"", body]
    return raw(b"\r\n".join(lines))


def silent(_handler: Handler) -> bool:
    time.sleep(3 * TIMEOUT)
    return True


OK = b"HTTP/1.1 200 OK\r\n"
GOOD = json.dumps(completion()).encode()

TRANSPORT = {
    "nothing": raw(b""),
    "silence": silent,
    "headers by the byte": endless(OK, b"a", 0.05),
    "endless headers": endless(OK, b"X-More: yes\r\n"),
    "a line without an end": endless(b"HTTP/1.1 200 ", b"x" * 65536),
    "body by the byte": endless(OK + b"Content-Length: 100000\r\n\r\n", b" ", 0.05),
    "endless body": endless(OK + b"Connection: close\r\n\r\n", b" " * 65536),
    "body by the byte, then closed": endless(OK + b"Connection: close\r\n\r\n", b" ", 0.05),
    "endless chunks": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"),
    "chunk of no size": raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n\r\n"),
    "negative chunk": raw(OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n"),
    "enormous length": raw(OK + b"Content-Length: 99999999999999999999\r\n\r\n{}"),
    "negative length": raw(OK + b"Content-Length: -7\r\n\r\n"),
    "too short": raw(OK + b"Content-Length: 1000\r\n\r\n" + GOOD),
    "continue, forever": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.9\r\n" + EVIL.encode()),
    "no status": raw(b"HTTP/1.1 two hundred\r\n\r\n"),
    "status of its own": whole(EVIL.encode(), status=b"999 what"),
    "compressed": whole(gzip.compress(GOOD), b"Content-Encoding: gzip"),
    "no content": whole(b"", status=b"204 No Content"),
    "empty": whole(b""),
    "elsewhere": whole(b"", b"Location: http://127.0.0.1:1/" + KEY.encode(), status=b"302 Found"),
    "refused key": says(EVIL, 401),
    "refused": says({"error": {"message": EVIL}}, 400),
    "failing": says(EVIL, 500),
    "failing without end": endless(b"HTTP/1.1 500 no\r\nConnection: close\r\n\r\n", EVIL.encode() * 1000),
    "busy for long": says("later", 429, Retry_After="9" * 400),
    "busy until some day": says("later", 503, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"),
    "no UTF-8": whole(b'{"choices": [{"text": "\xff\xfe"}]}'),
    "UTF-16": whole(json.dumps(completion()).encode("utf-16")),
    "page": says(f"<html>{EVIL}</html>"),
}

NO_COMPLETION: dict[str, Any] = {
    "null": None,
    "true": True,
    "number": 7,
    "string": json.dumps(EVIL),
    "list": [[], {}],
    "not a number": "NaN",
    "deep": "[" * 100_000,
    "deep objects": '{"choices":' * 900 + "1" + "}" * 900,
    "long number": "9" * 5000,
    "twice": '{"choices": [], "choices": []}',
    "cut": GOOD[:-9].decode(),
    "two": f"{GOOD.decode()} {GOOD.decode()}",
    "error": {"error": EVIL},
    "choices null": {"choices": None},
    "choices object": {"choices": {"0": completion()["choices"][0]}},
    "choices text": {"choices": EVIL},
    "no choice": {"choices": []},
    "two choices": {"choices": completion()["choices"] * 2},
    "choice null": {"choices": [None]},
    "choice text": {"choices": [EVIL]},
    "choice number": {"choices": [1]},
    "usage text": completion() | {"usage": EVIL},
    "usage list": completion() | {"usage": [1]},
    "tokens text": completion() | {"usage": {"prompt_tokens": EVIL}},
    "tokens below zero": completion() | {"usage": {"prompt_tokens": -1}},
    "tokens infinite": completion() | {"usage": {"prompt_tokens": math.inf}},
    "tokens nan": completion() | {"usage": {"prompt_tokens": math.nan}},
    "tokens enormous": completion() | {"usage": {"prompt_tokens": 10**400}},
    "tokens true": completion() | {"usage": {"prompt_tokens": True}},
}


def listed(*tokens: Any) -> dict[str, Any]:
    return completion(logprobs={"content": [{"top_logprobs": list(tokens)}]})


NO_LOGPROBS: dict[str, Any] = {
    "none": completion(logprobs=None),
    "text": completion(logprobs=EVIL),
    "list": completion(logprobs=[TOP]),
    "number": completion(logprobs=5),
    "tops text": completion(logprobs={"top_logprobs": EVIL}),
    "tops object": completion(logprobs={"top_logprobs": TOP}),
    "tops null": completion(logprobs={"top_logprobs": None}),
    "top null": completion(None),
    "top text": completion(EVIL),
    "top list": completion([[" A", -1.0]]),
    "top number": completion(3),
    "value text": completion(TOP | {" B": "-2.0"}),
    "value true": completion(TOP | {" B": True}),
    "value list": completion(TOP | {" B": [-2.0]}),
    "value object": completion(TOP | {" B": {"logprob": -2.0}}),
    "value nan": completion(TOP | {" B": math.nan}),
    "value infinite": completion(TOP | {" B": math.inf}),
    "value minus infinity": completion(TOP | {" B": -math.inf}),
    "value overflows": json.dumps(completion(TOP)).replace("-2.0", "1e999"),
    "value enormous": completion(TOP | {" B": 10**400}),
    "value very small": completion(TOP | {" B": -(10**400)}),
    "values above zero": completion({name: -value for name, value in TOP.items()}),
    "probabilities": completion({name: math.exp(value) for name, value in TOP.items()}),
    "all certain": completion(dict.fromkeys(TOP, 0.0)),
    "letters missing": completion({" the": -0.5, EVIL: -2.0}),
    "name twice": json.dumps(completion(TOP)).replace('" the"', '" A"'),
    "content text": completion(logprobs={"content": EVIL}),
    "content null": completion(logprobs={"content": [None]}),
    "content of texts": completion(logprobs={"content": [{"top_logprobs": EVIL}]}),
    "content without names": listed({"logprob": -1.0}),
    "content with numbers": listed({"token": 1, "logprob": -1.0}),
    "content without values": listed({"token": " A"}),
    "content infinite": listed({"token": " A", "logprob": math.inf}),
    "content null token": listed(None),
    "end of text": completion(logprobs={"top_logprobs": []}, finish_reason="stop"),
}

BEHAVIORS: dict[str, Callable[[Handler], bool]] = {
    **TRANSPORT,
    **{f"answer {name}": says(content) for name, content in NO_COMPLETION.items()},
    **{f"logprobs {name}": says(content) for name, content in NO_LOGPROBS.items()},
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(server_module, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(server_module, "_LONGEST_WAIT", 0.05)
    monkeypatch.setattr(server_module, "_LAST_WAIT", 0.5)
    server = StandIn(lambda _body: completion())
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def assert_says_what_is_wrong(message: str, url: str) -> None:
    assert url in message
    assert KEY not in message
    assert message.isprintable(), "escape sequences, or more than one line"
    assert len(message) < 1500


def ask(server: Server, folder: Path, **options: Any) -> None:
    journal = Journal.open(folder, RUN, resume=True)
    try:
        score_served(server, PROMPTS, partial=PartialScores.resumed(16, journal), **options)
    finally:
        journal.close()


def test_there_are_enough_of_them() -> None:
    assert len(BEHAVIORS) + len(ECHOED) + len(OF_PROMPT) + len(MODELS) > 120


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_no_answer_gives_a_wrong_number_a_traceback_or_a_long_wait(
    stand_in: StandIn, tmp_path: Path, behavior: str
) -> None:
    """The second question's answers are bad; then the server mends, and the run goes on from what is sane."""
    bad = PROMPTS[0].context(1)
    stand_in.fault = lambda handler, _: handler.body["prompt"] == bad and BEHAVIORS[behavior](handler)
    server = Server(stand_in.url, "birds", api_key=KEY, timeout=TIMEOUT, retries=1, concurrency=2)
    begin = time.monotonic()
    with pytest.raises(ModelError, match=r"^question 2 of task 1: ") as caught:
        ask(server, tmp_path)
    # Two tries, the pause between, the second question that waits no longer than the first.
    assert time.monotonic() - begin < 4 * TIMEOUT + 4
    assert_says_what_is_wrong(str(caught.value), stand_in.url)
    [path] = tmp_path.iterdir()
    assert KEY.encode() not in path.read_bytes()
    kept = Journal.open(tmp_path, RUN, resume=True)
    np.testing.assert_array_equal(kept.loglikelihood, EXPECTED[kept.choices])
    assert not set(range(4, 8)) & set(kept.choices.tolist())
    kept.close()
    stand_in.fault = lambda *_: False
    mended = Journal.open(tmp_path, RUN, resume=True)
    scores = score_served(server, PROMPTS, partial=PartialScores.resumed(16, mended))
    mended.close()
    np.testing.assert_array_equal(scores.loglikelihood, EXPECTED)


def test_an_answer_too_many_is_not_taken_for_the_next_one(stand_in: StandIn) -> None:
    """A connection on which something lies before anything was asked is out of step."""
    wrong = json.dumps(completion({" A": -4.0, " B": -4.0, " C": -4.0, " D": -0.1})).encode()

    def twice(handler: Handler) -> bool:
        for body in (GOOD, wrong):
            handler.wfile.write(b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), b"", body]))
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    stand_in.fault = lambda handler, _: handler.body["prompt"] == "a" and twice(handler)
    client = Client(Server(stand_in.url, "birds", timeout=5))
    first, _ = client.completion({"prompt": "a"})
    time.sleep(0.3)
    second, _ = client.completion({"prompt": "b"})
    client.close()
    assert first["logprobs"] == second["logprobs"] == {"top_logprobs": [TOP]}


# Prompts as tokens, and choices of two: what is said of a prompt's own tokens.
TOKENS = wf.Requests.from_tokens(
    [[1, 2, number] for number in range(4)], [[[5, 6], [5, 7], [5, 8], [5, 9]]] * 4, max_length=8
)


def echo(**changes: Any) -> dict[str, Any]:
    """An echoed prompt of five tokens and the one that was made."""
    given = {
        "tokens": ["a", "b", "c", "d", "e", "f"],
        "text_offset": [0, 1, 2, 3, 4, 5],
        "token_logprobs": [None, -1.0, -1.0, -1.0, -1.0, -1.0],
        "top_logprobs": [None, *({letter: -1.0} for letter in "bcdef")],
    }
    return {"choices": [{"text": "abcdef", "logprobs": given | changes}]}


def with_value(value: Any) -> dict[str, Any]:
    return echo(token_logprobs=[None, -1.0, -1.0, -1.0, value, -1.0])


ECHOED: dict[str, Any] = {
    "nothing": {"choices": [{"text": "abcdef"}]},
    "text": {"choices": [{"text": "abcdef", "logprobs": EVIL}]},
    "values text": echo(token_logprobs=EVIL),
    "values short": echo(token_logprobs=[None, -1.0]),
    "values long": echo(token_logprobs=[-1.0] * 20, top_logprobs=[{"a": -1.0}] * 20),
    "value null": with_value(None),
    "value text": with_value("-1.0"),
    "value nan": with_value(math.nan),
    "value infinite": with_value(math.inf),
    "value minus infinity": with_value(-math.inf),
    "value enormous": with_value(10**400),
    "value above zero": with_value(2.5),
    "value above the likeliest": with_value(-0.5),
    "value true": with_value(True),
    "value object": with_value({EVIL: 1}),
    "tops short": echo(top_logprobs=[{"a": -1.0}]),
    "tops text": echo(top_logprobs=EVIL),
    "tops of text": echo(top_logprobs=[EVIL] * 6),
    "top empty": echo(top_logprobs=[{}] * 6),
    "top infinite": echo(top_logprobs=[None, *[{"a": math.inf}] * 5]),
}


def of_prompt(place: Any = None, **changes: Any) -> dict[str, Any]:
    likely = {"logprob": -1.0, "rank": 1}
    last = {str(token): likely for token in (5, 6, 7)}
    places = [None, {"2": likely}, {"3": likely}, last, last if place is None else place]
    return {"choices": [{"text": "x", "prompt_logprobs": places, **changes}]}


OF_PROMPT: dict[str, Any] = {
    "nothing": of_prompt(prompt_logprobs=None),
    "text": of_prompt(prompt_logprobs=EVIL),
    "short": of_prompt(prompt_logprobs=[None, {}]),
    "place text": of_prompt(EVIL),
    "place list": of_prompt([6]),
    "another token": of_prompt({"99": {"logprob": -1.0}}),
    "value missing": of_prompt({"6": {}}),
    "value null": of_prompt({"6": {"logprob": None}}),
    "value bare": of_prompt({"6": -1.0}),
    "value text": of_prompt({"6": {"logprob": "-1"}}),
    "value infinite": of_prompt({"6": {"logprob": math.inf}}),
    "value nan": of_prompt({"6": {"logprob": math.nan}}),
    "value above zero": of_prompt({"6": {"logprob": 3.0}}),
    "value enormous": of_prompt({"6": {"logprob": 10**400}}),
    "all certain": of_prompt({str(token): {"logprob": 0.0} for token in range(6, 10)}),
    "a name that is none": of_prompt({"6": {"logprob": -1.0}, EVIL: EVIL}),
}


@pytest.mark.parametrize(
    ("protocol", "content"),
    [
        *(pytest.param("openai", content, id=f"echo {name}") for name, content in ECHOED.items()),
        *(pytest.param("vllm", content, id=f"prompt_logprobs {name}") for name, content in OF_PROMPT.items()),
    ],
)
def test_what_is_said_of_a_prompt_is_checked_too(
    stand_in: StandIn, tmp_path: Path, protocol: Any, content: dict[str, Any]
) -> None:
    stand_in.fault = lambda handler, _: says(content)(handler)
    server = Server(stand_in.url, "birds", protocol, api_key=KEY, timeout=5, retries=0, concurrency=1)
    with pytest.raises(ModelError, match=r"^question 1 of task 1: ") as caught:
        ask(server, tmp_path, requests=TOKENS)
    assert_says_what_is_wrong(str(caught.value), stand_in.url)
    kept = Journal.open(tmp_path, RUN, resume=True)
    assert len(kept.choices) == 0
    kept.close()


def test_offsets_that_run_backwards_are_no_empty_choice(stand_in: StandIn) -> None:
    """Of no tokens the log-likelihood would be 0; a choice without ASCII letters was taken for such."""
    rows = [{"question": "?", "choices": ["\u00e9\u00e9", "\u00fc\u00fc"], "answer": 0}]
    prompts = [wf.PromptTemplate(choices="texts").render(wf.QuestionSet.from_rows(rows))]

    def backwards(body: dict[str, Any]) -> dict[str, Any]:
        length = len(body["prompt"])
        begin = len(prompts[0].context(0).rstrip())
        given = {
            "tokens": ["x", "y"],
            "text_offset": [length, begin],
            "token_logprobs": [-1.0, -1.0],
            "top_logprobs": [{"x": -1.0}, {"y": -1.0}],
        }
        return {"choices": [{"text": body["prompt"], "logprobs": given}]}

    stand_in.complete = backwards
    with pytest.raises(ModelError, match="must be asked for with echo"):
        score_served(Server(stand_in.url, "birds", concurrency=1), prompts)


MODELS: dict[str, Any] = {
    "null": None,
    "list": [],
    "text": json.dumps(EVIL),
    "deep": "[" * 100_000,
    "data text": {"data": EVIL},
    "data of texts": {"data": [EVIL]},
    "others": {"data": [{"id": EVIL}, {"id": [EVIL]}, {"id": None}]},
    "root": {"data": [{"id": "birds", "root": EVIL}]},
    "root with the key": {"data": [{"id": "birds", "root": KEY}]},
    "root object": {"data": [{"id": "birds", "root": {"a": 1}}]},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_list_of_models_is_checked(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("tests.support.served_stand_in.Handler.do_GET", lambda handler: says(MODELS[name])(handler))
    with pytest.raises(ModelError) as caught:
        connect(Server(stand_in.url, "birds", "vllm", api_key=KEY, timeout=5, retries=0))
    assert_says_what_is_wrong(str(caught.value), stand_in.url)


def test_a_handshake_by_the_byte_has_a_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    connection.sendall(b"\x16\x03\x03\x40\x00")
                    for _ in itertools.repeat(None):
                        connection.sendall(b"\x02")
                        time.sleep(0.05)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        begin = time.monotonic()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/v1"
        with pytest.raises(ModelError, match=r"within 0\.5 s"):
            connect(Server(url, "birds", timeout=TIMEOUT, retries=0))
        assert time.monotonic() - begin < 5


def test_a_journal_with_impossible_scores_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As versions left them that took infinity for a log-probability."""
    choices, greedy = np.arange(2), np.zeros(2, dtype=np.bool_)
    for name, value in {"infinite": math.inf, "nan": math.nan, "positive": 3.0}.items():
        folder = tmp_path / name
        journal = Journal.open(folder, RUN, resume=False)
        with pytest.raises(ModelError, match="the log-likelihood of choice 2 of the run came out as"):
            journal.add(choices, np.array([-1.0, value]), greedy)
        with monkeypatch.context() as earlier:
            earlier.setattr("wmdp_fast.scoring.journal._first_wrong", lambda _scores: None)
            journal.add(choices, np.array([-1.0, value]), greedy)
        journal.close()
        with pytest.raises(JournalError, match=re.escape(f"{journal.path} cannot be resumed: for choice 2")):
            Journal.open(folder, RUN, resume=True)
    fine = Journal.open(tmp_path, RUN, resume=False)
    fine.add(choices, np.array([-math.inf, 1e-6]), greedy)
    fine.close()
    assert len(Journal.open(tmp_path, RUN, resume=True).choices) == 2


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"timeout": math.inf}, "timeout must be at most 86400"),
        ({"timeout": math.nan}, "timeout must be above 0"),
        ({"concurrency": 10**6}, "concurrency must be at most 1024"),
        ({"top_logprobs": 10**30}, "top_logprobs must be at most"),
        ({"retries": 10**30}, "retries must be at most"),
        ({"api_key": f"{KEY}\n"}, "api_key has a character at place 20"),
        ({"api_key": f"{KEY}\u20ac"}, "api_key has a character at place 20"),
        ({"base_url": f"http://127.0.0.1/v1?key={KEY}"}, r"without \? and #"),
        ({"base_url": f"http://me:{KEY}@127.0.0.1:99999999/v1"}, "must not hold a name or password"),
        ({"base_url": "http://127.0.0.1:99999999/v1"}, "base_url must be like"),
        ({"base_url": "http://[::1/v1"}, "base_url must be like"),
        ({"base_url": "http://127.0.0.1/v 1"}, "base_url must be like"),
        ({"base_url": "http://127.0.0.1/\x1b[31m"}, "base_url must be like"),
    ],
)
def test_impossible_servers_are_refused_without_showing_a_secret(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        Server(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", **wrong})
    assert KEY not in str(caught.value)
    assert str(caught.value).isprintable()
