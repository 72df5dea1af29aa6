"""A small server on the loopback that answers `/v1/models` and `/v1/completions`, and can misbehave."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast import demo
from wmdp_fast.models.load import load_model

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = "birds"


class StandIn(ThreadingHTTPServer):
    """Serves a model called `birds`.

    `complete` makes a completion of a request's body. `fault` may answer instead, and gets how often this very request
    has been made.
    """

    daemon_threads = True

    def __init__(self, complete: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.complete = complete
        self.models: Any = {"object": "list", "data": [{"id": "other"}, {"id": MODEL}]}
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

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        known = self.path == "/v1/models" and self.server.models is not None
        self.answer(*((200, self.server.models) if known else (404, "not found")))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = json.dumps({**body, "model": ""}, sort_keys=True)
        with self.server.lock:
            self.server.asked[key] = times = self.server.asked.get(key, 0) + 1
            self.server.bodies.append(body)
            self.server.keys.append(self.headers["Authorization"])
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        self.body = body
        try:
            if not self.server.fault(self, times):
                self.answer(200, self.server.complete(body))
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
        # Who asked may have left.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


class DemoModel:
    """Completes with the demo model's own log-probabilities.

    Attributes:
        knows_chosen_tokens: Whether it does what later versions of vLLM do with `logprob_token_ids`.
        shift: How many tokens too early those of an echoed prompt are; what some servers get wrong.
    """

    def __init__(self) -> None:
        self.loaded = load_model(str(demo.model_path()), dtype="float32", device="cpu")
        self.knows_chosen_tokens = False
        self.shift = 0
        self._lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        tokens = self.loaded.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        with self._lock, torch.no_grad():
            logits = self.loaded.model(torch.tensor([tokens])).logits[0]
        rows = torch.log_softmax(logits.double(), dim=-1)
        by_id = body.get("return_tokens_as_token_ids", False)
        made = int(rows[-1].argmax())
        after = self._top(rows[-1], body.get("logprobs") or 0, by_id)
        if (chosen := body.get("logprob_token_ids")) and self.knows_chosen_tokens:
            after = {f"token_id:{token}": float(rows[-1, token]) for token in [made, *chosen]}
        text = self.loaded.tokenizer.decode([made])
        choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None}
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"top_logprobs": [after]}
        if body.get("echo"):
            choice["text"] = (prompt if isinstance(prompt, str) else self.loaded.tokenizer.decode(prompt)) + text
            choice["logprobs"] = self._echo([*tokens, made], rows, body["logprobs"])
        if (count := body.get("prompt_logprobs")) is not None:
            choice["prompt_logprobs"] = [None, *map(self._of_prompt, rows, tokens[1:], [count] * len(tokens))]
        return {"choices": [choice], "usage": {"prompt_tokens": len(tokens)}}

    def _top(self, row: torch.Tensor, count: int, by_id: bool) -> dict[str, float]:
        values, ids = row.topk(count)
        names = [f"token_id:{token}" if by_id else self.loaded.tokenizer.decode([token]) for token in ids.tolist()]
        # Several tokens may be written alike; the likeliest counts.
        return dict(reversed(list(zip(reversed(names), reversed(values.tolist()), strict=True))))

    def _echo(self, tokens: list[int], rows: torch.Tensor, count: int) -> dict[str, Any]:
        texts = [self.loaded.tokenizer.decode([token]) for token in tokens]
        values: list[float | None] = [None]
        tops: list[dict[str, float] | None] = [None]
        for place, token in enumerate(tokens[1:], start=1):
            row = rows[max(0, place - 1 - self.shift)]
            values.append(float(row[token]))
            tops.append(self._top(row, count, by_id=False) | {texts[place]: float(row[token])})
        offsets = [
            len(self.loaded.tokenizer.decode(tokens[:place], skip_special_tokens=True)) for place in range(len(tokens))
        ]
        return {"tokens": texts, "text_offset": offsets, "token_logprobs": values, "top_logprobs": tops}

    def _of_prompt(self, row: torch.Tensor, token: int, count: int) -> dict[str, Any]:
        order = row.argsort(descending=True).tolist()
        named = dict.fromkeys([*order[:count], token])
        return {str(one): {"logprob": float(row[one]), "rank": order.index(one) + 1} for one in named}
