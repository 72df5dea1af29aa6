"""A server that speaks OpenAI's HTTP interface: where it is, and requests to it that are patient.

Knows nothing of questions; `served` asks them. Loads neither torch nor transformers. A server may be broken or hostile:
an answer has a deadline and a largest size, and what a server writes is shown without control characters or the key.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from wmdp_fast.exceptions import ModelError
from wmdp_fast.runtime.printable import printable
from wmdp_fast.scoring.completion import AnswerError, completion_of, message_of
from wmdp_fast.scoring.connection import route_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0

# Once stopped, for how many seconds answers that are under way are waited for.
_LAST_WAIT = 10.0

# The largest answer that is read: so many bytes, and more for what was asked for. A prompt's token is at least one byte
# of the request, and what a server says of it some hundred.
_LARGEST = 1 << 20
_LARGEST_FOR_BYTE, _LARGEST_FOR_LIKELY_TOKEN = 512, 1024
# A list of models, and what is read of a refusal.
_LARGEST_LIST, _LARGEST_REFUSAL = 1 << 24, 1 << 16

# What a day has; as long may an answer take.
_LONGEST_TIMEOUT = 86_400
_MOST_AT_ONCE, _MOST_LIKELY_TOKENS = 1024, 1_000_000

Protocol = Literal["openai", "vllm"]
"""What a server understands: what OpenAI's `/v1/completions` does, or what vLLM's does beside."""

Missing = Literal["error", "bound", "ask"]
"""What to do about an answer that is not among the likeliest tokens that a server gives.

`"error"` stops. `"bound"` takes the least of the log-probabilities given, which it cannot exceed, if another answer of
the question is among them: predictions are right then, and log-likelihoods may be too high. `"ask"` asks for it in a
request of its own, which the server must be able to answer (`echo`, or vLLM's `prompt_logprobs`).
"""


@dataclass(frozen=True)
class Server:
    """Where a model is served, and how to ask there. Refuses impossible values with a ValueError.

    Attributes:
        base_url: As OpenAI's clients take it, `http://127.0.0.1:8000/v1`.
        model: The model's name there.
        protocol: See `Protocol`.
        api_key: Sent as bearer token, if any. Written down nowhere.
        top_logprobs: How many of the likeliest tokens to ask for. OpenAI gives 5; vLLM 20, unless it was started with a
            larger `--max-logprobs`.
        missing: See `Missing`; None is `"ask"` for vLLM, else `"error"`.
        concurrency: Maximum concurrent requests.
        timeout: Seconds that an answer may take, from the connection to its last byte.
        retries: How often a request is sent again that failed for a reason that may pass: 408, 429, 5xx, a connection
            that was refused, cut or silent.

    Example:
        >>> from wmdp_fast import Server
        >>> server = Server("http://127.0.0.1:8000/v1", "lab/model")
        >>> server.model
        'lab/model'
        >>> Server("127.0.0.1:8000", "lab/model")
        Traceback (most recent call last):
            ...
        ValueError: ...
    """

    base_url: str
    model: str
    protocol: Protocol = "openai"
    api_key: str | None = field(default=None, repr=False)
    top_logprobs: int = 20
    missing: Missing | None = None
    concurrency: int = 32
    timeout: float = 120.0
    retries: int = 6

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        for name, known in {"protocol": ("openai", "vllm"), "missing": ("error", "bound", "ask", None)}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, not {getattr(self, name)}")
        bounds = {"top_logprobs": (1, _MOST_LIKELY_TOKENS), "concurrency": (1, _MOST_AT_ONCE), "retries": (0, 1000)}
        for name, (least, most) in bounds.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, not {getattr(self, name)}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0, not {self.timeout}")
        if self.timeout > _LONGEST_TIMEOUT:
            raise ValueError(f"timeout must be at most {_LONGEST_TIMEOUT} seconds, a day, not {self.timeout:g}")
        # Checked here, as an error of the HTTP library would show it.
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            place = next(at for at, one in enumerate(self.api_key) if not (one.isascii() and one.isprintable()))
            raise ValueError(f"api_key has a character at place {place + 1} that no key has: a line end, for instance")

    @property
    def about_missing(self) -> Missing:
        """What to do about answers that are not among the likeliest tokens."""
        return self.missing or ("ask" if self.protocol == "vllm" else "error")


class _PassingError(Exception):
    """A failure that may not happen again."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


class _UnreachableError(_PassingError):
    """Nobody listens there."""


class _NoSuchPathError(Exception):
    """The server does not know a path."""


@dataclass(eq=False)
class _Exchange:
    """A request that is under way.

    Attributes:
        connection: What it is sent on.
        deadline: When its answer must be there, by `time.monotonic`.
        socket: The connection's, once it is open; `http.client` forgets it where the server is going to close it.
    """

    connection: http.client.HTTPConnection
    deadline: float
    socket: socket.socket | None = None

    def cut(self) -> None:
        """Shuts the connection; whoever waits for something on it gets an error."""
        for one in (self.socket, self.connection.sock):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


class Client:
    """Connections to a server, one a thread, which are kept open between requests.

    Attributes:
        server: The server.
        sent: Requests sent so far, those sent again included.
        repeated: Of those, how many were sent again.
    """

    def __init__(self, server: Server) -> None:
        """Opens nothing yet.

        Raises:
            ModelError: The environment names a proxy of a kind that is not spoken here.
        """
        url = urlsplit(server.base_url)
        self.server = server
        self.sent = self.repeated = 0
        self._stopping, self._is_cut, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._last: threading.Timer | None = None
        self._lock = threading.Lock()
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._under_way: set[_Exchange] = set()
        self._watch: threading.Thread | None = None
        try:
            self._route = route_to(url)
        except ValueError as error:
            raise ModelError(f"{server.base_url} cannot be reached: {error}") from error
        self._path = url.path.rstrip("/")
        self._secrets = [
            form
            for secret in (server.api_key, *(self._route.proxy.secrets if self._route.proxy else ()))
            if secret
            for form in {secret, json.dumps(secret)[1:-1], quote(secret, safe="")}
        ]

    def completion(self, body: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
        """Asks for one completion.

        Args:
            body: What to ask, beside the model's name.

        Returns:
            The completion (`choices[0]`), and the number of tokens of the prompt, 0 if the server does not say.

        Raises:
            ModelError: The server refuses, keeps failing or answers with something else; names the address and says
                what to do.
        """
        answer = self._patiently("POST", "/completions", {"model": self.server.model, **body})
        try:
            return completion_of(answer)
        except AnswerError as error:
            raise ModelError(
                f"{self.server.base_url} gave no completion ({self.shown(str(error))}): {self._dumped(answer)}"
            ) from error

    def chat(self, body: Mapping[str, Any]) -> str:
        """Asks for the next message of a chat, at `/chat/completions`.

        Args:
            body: What to ask, beside the model's name: `messages` and settings.

        Returns:
            The text of the message.

        Raises:
            ModelError: As `completion`.
        """
        answer = self._patiently("POST", "/chat/completions", {"model": self.server.model, **body})
        try:
            return message_of(answer)
        except AnswerError as error:
            raise ModelError(
                f"{self.server.base_url} gave no message ({self.shown(str(error))}): {self._dumped(answer)}"
            ) from error

    def served_model(self) -> Mapping[str, Any] | None:
        """What the server says of the model, or None if it lists no models.

        Raises:
            ModelError: The server cannot be reached, or serves other models only; names the address and says what to
                do.
        """
        try:
            answer = self._patiently("GET", "/models", None)
        except _NoSuchPathError:
            return None
        listed = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(listed, list) or not all(isinstance(one, dict) and "id" in one for one in listed):
            raise ModelError(f"{self.server.base_url}/models lists no models: {self._dumped(answer)}")
        for one in listed:
            if one["id"] == self.server.model:
                return dict(one)
        names = ", ".join(self.shown(str(one["id"]), most=100) for one in listed[:20]) or "none"
        more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
        raise ModelError(
            f"{self.server.base_url} does not serve {self.server.model}: ask for a model by the name it has there,"
            f" which is one of: {names}{more}"
        )

    def shown(self, text: str, *, most: int = 300) -> str:
        """A server's text as it may be printed or written down.

        The key and a proxy's password are masked, should the server repeat them; characters that a terminal obeys or
        does not show are escaped.
        """
        for form in self._secrets:
            text = text.replace(form, "***")
        return printable(text[:most]) + "..." * (len(text) > most)

    @property
    def is_stopped(self) -> bool:
        """Whether nothing that has failed is sent again."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """From now on nothing that has failed is sent again, and what is under way is given up after some seconds."""
        with self._lock:
            if self.is_stopped:
                return
            self._stopping.set()
        self._last = threading.Timer(_LAST_WAIT, self.cut)
        self._last.daemon = True
        self._last.start()

    def cut(self) -> None:
        """Gives up what is under way: shuts all connections, those too on which an answer is being waited for."""
        self._stopping.set()
        self._is_cut.set()
        with self._lock:
            under_way = list(self._under_way)
        for exchange in under_way:
            exchange.cut()

    def close(self) -> None:
        """Closes all connections, on which nothing may be under way any more."""
        self._closed.set()
        if self._last is not None:
            self._last.cancel()
        for connection in self._connections:
            connection.close()

    def _patiently(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        pause = _FIRST_WAIT
        for attempt in range(self.server.retries + 1):
            with self._lock:
                self.sent += 1
                self.repeated += attempt > 0
            try:
                return self._once(method, path, content)
            except _UnreachableError as error:
                problem: _PassingError = error
                if body is None:
                    # The very first thing that is asked: nobody is there, or not yet.
                    break
            except _PassingError as error:
                problem = error
            if attempt < self.server.retries:
                # Not all threads at the same time again.
                asked = problem.wait if problem.wait is not None else pause * random.uniform(0.5, 1.5)  # noqa: S311
                if self._stopping.wait(min(asked, _LONGEST_WAIT)):
                    break
                pause = min(2 * pause, _LONGEST_WAIT)
        if body is None:
            raise ModelError(
                f"{self.server.base_url} cannot be reached ({problem}): start the server, or give its address"
                " (--base-url), which ends in /v1 for most"
            )
        raise ModelError(
            f"{self.server.base_url} keeps failing ({attempt + 1} times), at last with: {problem}. See what the server"
            " says; fewer requests at once (--concurrency), a longer --timeout or more --retries may help"
        )

    def _once(self, method: str, path: str, content: bytes | None) -> Any:
        status, after, text = self._exchange(method, path, content)
        url = self.server.base_url
        if status in (408, 429) or status >= 500:
            raise _PassingError(f"HTTP {status}: {self.shown(text)}", float(after) if after.isdecimal() else None)
        if status in (401, 403):
            raise ModelError(
                f"{url} refuses the key (HTTP {status}: {self.shown(text)}): put the right one into the environment"
                " variable OPENAI_API_KEY, or name another variable with --api-key-env"
            )
        if status == 404 and content is None:
            raise _NoSuchPathError(f"{url}{path} does not exist")
        if status != 200:
            hint = ""
            if "logprob" in text.lower():
                hint = f" (asked for were {self.server.top_logprobs}; ask for fewer with --top-logprobs)"
            raise ModelError(f"{url} refuses (HTTP {status}): {self.shown(text, most=500)}{hint}")
        try:
            return json.loads(text, object_pairs_hook=_no_name_twice)
        except (ValueError, RecursionError) as error:
            raise _PassingError(f"an answer that is no JSON: {self.shown(text)}") from error

    def _exchange(self, method: str, path: str, content: bytes | None) -> tuple[int, str, str]:
        """Sends a request; returns the answer's status, its `Retry-After` and its text."""
        headers = {"Content-Type": "application/json", **self._route.headers}
        if self.server.api_key is not None:
            headers["Authorization"] = f"Bearer {self.server.api_key}"
        connection = self._connection()
        exchange = _Exchange(connection, time.monotonic() + self.server.timeout)
        with self._watched(exchange):
            try:
                if connection.sock is None:
                    connection.connect()
                exchange.socket = connection.sock
                if self._is_cut.is_set():
                    raise ConnectionAbortedError("given up")
                connection.request(method, self._route.target(self._path + path), content, headers)
                response = connection.getresponse()
                text = self._text(response, content)
                if time.monotonic() >= exchange.deadline:
                    # To `http.client` a connection that is cut among the headers has come to their end.
                    raise TimeoutError("overdue")
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                if time.monotonic() >= exchange.deadline:
                    raise _PassingError(f"no whole answer within {self.server.timeout:g} s") from error
                if isinstance(error, ssl.SSLCertVerificationError) or "WRONG_VERSION_NUMBER" in str(error):
                    raise ModelError(
                        f"{self.server.base_url}: no secure connection ({self.shown(str(error))}): see whether it is"
                        " http:// there, or whether this machine knows who signed its certificate (SSL_CERT_FILE)"
                    ) from error
                unreachable = isinstance(error, (ConnectionRefusedError, socket.gaierror))
                problem = f"{type(error).__name__}: {self.shown(str(error))}"
                if (proxy := self._route.proxy) is not None:
                    problem += f", through the proxy {proxy.host}:{proxy.port} (NO_PROXY names servers to ask directly)"
                raise (_UnreachableError if unreachable else _PassingError)(problem) from error
        return response.status, response.headers.get("Retry-After", ""), text

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's connection. One that has something to say before it is asked is out of step, or closed."""
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._route.connection(self.server.timeout)
            with self._lock:
                self._connections.append(connection)
        elif connection.sock is not None:
            waiting = select.poll()
            waiting.register(connection.sock, select.POLLIN)
            if waiting.poll(0):
                connection.close()
        return connection

    def _text(self, response: http.client.HTTPResponse, content: bytes | None) -> str:
        """The body of an answer.

        Raises:
            HTTPException: The connection ended before it.
            ModelError: It is larger than anything that was asked for.
        """
        largest = _LARGEST_LIST
        if response.status != 200:
            largest = _LARGEST_REFUSAL
        elif content is not None:
            largest = _LARGEST + _LARGEST_FOR_BYTE * len(content) + _LARGEST_FOR_LIKELY_TOKEN * self.server.top_logprobs
        parts, size = [], 0
        while size <= largest and (part := response.read(1 << 16)):
            parts.append(part)
            size += len(part)
        if size > largest:
            self._local.connection.close()
            if response.status == 200:
                raise ModelError(
                    f"{self.server.base_url} gave an answer of more than {largest / 2**20:.0f} MiB, far more than was"
                    " asked for: use another server"
                )
        elif response.length:
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(parts)[:largest].decode("utf-8", "replace")

    @contextlib.contextmanager
    def _watched(self, exchange: _Exchange) -> Iterator[None]:
        """Inside, a request is cut when it is overdue: the timeout of a socket starts anew with each byte."""
        with self._lock:
            self._under_way.add(exchange)
            if self._watch is None:
                self._watch = threading.Thread(target=self._cut_overdue, name="wmdp-fast-watch", daemon=True)
                self._watch.start()
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(exchange)

    def _cut_overdue(self) -> None:
        while not self._closed.wait(min(1.0, max(0.01, self.server.timeout / 20))):
            now = time.monotonic()
            with self._lock:
                overdue = [exchange for exchange in self._under_way if now >= exchange.deadline]
            for exchange in overdue:
                exchange.cut()

    def _dumped(self, answer: object) -> str:
        try:
            return self.shown(json.dumps(answer, ensure_ascii=False))
        except (ValueError, RecursionError):
            return "something that cannot be shown"


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which each name says one thing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _check_url(base_url: str) -> None:
    """Raises a ValueError if it is no address, or one that holds what must not be written down."""
    try:
        url = urlsplit(base_url)
        is_address = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # Its port is no number, or its brackets are not closed.
        is_address = False
    # Neither shows the address: it may hold a secret.
    if "@" in base_url.partition("//")[2].partition("/")[0]:
        raise ValueError("base_url must not hold a name or password, as it is written down; pass an api_key")
    if "?" in base_url or "#" in base_url:
        raise ValueError("base_url must end with its path, without ? and #; pass a key as api_key")
    if not is_address or not (base_url.isascii() and base_url.isprintable()) or " " in base_url:
        raise ValueError(f"base_url must be like http://127.0.0.1:8000/v1, not {base_url!r}")
