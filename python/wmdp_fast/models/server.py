"""A server that speaks OpenAI's HTTP interface: where it is, and requests to it that are patient.

Knows nothing of questions; `served` asks them. Loads neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0

# Once stopped, for how many seconds answers that are under way are waited for.
_LAST_WAIT = 10.0

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
        concurrency: Most requests at once.
        timeout: Seconds to wait for an answer.
        retries: How often a request is sent again that failed for a reason that may pass: 408, 429, 5xx, a connection
            that was refused, cut or silent.
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
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url must be like http://127.0.0.1:8000/v1, not {self.base_url!r}")
        if "@" in url.netloc:
            raise ValueError("base_url must not hold a name or password, as it is written down; pass an api_key")
        for name, known in {"protocol": ("openai", "vllm"), "missing": ("error", "bound", "ask", None)}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, not {getattr(self, name)}")
        for name, least in {"top_logprobs": 1, "concurrency": 1, "retries": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0, not {self.timeout}")

    @property
    def about_missing(self) -> Missing:
        """What to do about answers that are not among the likeliest tokens."""
        return self.missing or ("ask" if self.protocol == "vllm" else "error")


class _PassingError(Exception):
    """A failure that may not happen again."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


class Client:
    """Connections to a server, one a thread, which are kept open between requests.

    Attributes:
        server: The server.
        sent: Requests sent so far, those sent again included.
        repeated: Of those, how many were sent again.
    """

    def __init__(self, server: Server) -> None:
        url = urlsplit(server.base_url)
        self.server = server
        self.sent = self.repeated = 0
        self._stopping = threading.Event()
        self._last: threading.Timer | None = None
        self._lock = threading.Lock()
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._connect = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = url.hostname or "", url.port
        self._path = url.path.rstrip("/")

    def completion(self, body: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
        """Asks for one completion.

        Args:
            body: What to ask, beside the model's name.

        Returns:
            The completion (`choices[0]`), and the number of tokens of the prompt, 0 if the server does not say.

        Raises:
            ModelError: The server refuses or keeps failing; names the address and says what to do.
        """
        answer = self._patiently("POST", "/completions", {"model": self.server.model, **body})
        try:
            [choice] = answer["choices"]
            tokens = int((answer.get("usage") or {}).get("prompt_tokens") or 0)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{self.server.base_url} gave no completion: {json.dumps(answer)[:300]}") from error
        return choice, tokens

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
            raise ModelError(f"{self.server.base_url}/models lists no models: {json.dumps(answer)[:300]}")
        for one in listed:
            if one["id"] == self.server.model:
                return dict(one)
        names = ", ".join(str(one["id"]) for one in listed[:20]) or "none"
        more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
        raise ModelError(
            f"{self.server.base_url} does not serve {self.server.model}: ask for a model by the name it has there,"
            f" which is one of: {names}{more}"
        )

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
        with self._lock:
            for connection in self._connections:
                # Another thread may close it just now.
                if (open_socket := connection.sock) is not None:
                    with contextlib.suppress(OSError):
                        open_socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes all connections, on which nothing may be under way any more."""
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
        headers = {"Content-Type": "application/json"}
        if self.server.api_key is not None:
            headers["Authorization"] = f"Bearer {self.server.api_key}"
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect(self._host, self._port, timeout=self.server.timeout)
            with self._lock:
                self._connections.append(connection)
        try:
            connection.request(method, self._path + path, content, headers)
            response = connection.getresponse()
            status, text = response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            unreachable = isinstance(error, (ConnectionRefusedError, socket.gaierror))
            raise (_UnreachableError if unreachable else _PassingError)(f"{type(error).__name__}: {error}") from error
        url = self.server.base_url
        if status in (408, 429) or status >= 500:
            after = response.headers.get("Retry-After", "")
            raise _PassingError(f"HTTP {status}: {text[:200]}", float(after) if after.isdecimal() else None)
        if status in (401, 403):
            raise ModelError(
                f"{url} refuses the key (HTTP {status}: {text[:300]}): put the right one into the environment variable"
                " OPENAI_API_KEY, or name another variable with --api-key-env"
            )
        if status == 404 and content is None:
            raise _NoSuchPathError(f"{url}{path} does not exist")
        if status != 200:
            hint = ""
            if "logprob" in text.lower():
                hint = f" (asked for were {self.server.top_logprobs}; ask for fewer with --top-logprobs)"
            raise ModelError(f"{url} refuses (HTTP {status}): {text[:500]}{hint}")
        try:
            return json.loads(text)
        except ValueError as error:
            raise _PassingError(f"an answer that is no JSON: {text[:200]!r}") from error


class _UnreachableError(_PassingError):
    """Nobody listens there."""


class _NoSuchPathError(Exception):
    """The server does not know a path."""
