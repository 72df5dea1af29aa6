"""Served models behind a proxy of the environment, and what NO_PROXY and the loopback leave out."""

from __future__ import annotations

import base64
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.support.served_stand_in import StandIn
from wmdp_fast.exceptions import ModelError
from wmdp_fast.scoring import server as server_module
from wmdp_fast.scoring.server import Client, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = "model.invalid"
KEY = "sk-0123456789abcdef"
ANSWER = {"choices": [{"text": " A", "logprobs": {"top_logprobs": [{" A": -0.5}]}}], "usage": {"prompt_tokens": 3}}


class Proxy(ThreadingHTTPServer):
    """Sends everything to one port of the loopback, wherever it was to go, and remembers what it was asked for."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.port = port
        self.asked: list[tuple[str, str, str | None]] = []
        self.refusal: int | None = None
        self.drip = False


class ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        line = self.rfile.readline(65537)
        self.raw_requestline = line
        if not line or not self.parse_request():
            self.close_connection = True
            return
        self.server.asked.append((self.command, self.path, self.headers["Proxy-Authorization"]))
        self.close_connection = True
        if self.server.drip:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(200):
                self.wfile.write(b"X: y\r\n")
                time.sleep(0.05)
        elif self.server.refusal is not None:
            self.send_error(self.server.refusal)
        else:
            self.relay()

    def relay(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as behind:
            if self.command == "CONNECT":
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self.wfile.flush()
                back = threading.Thread(target=pump, args=(behind, self.connection), daemon=True)
                back.start()
                pump(self.connection, behind)
                back.join(timeout=20)
                return
            path = urlsplit(self.path).path
            kept = [f"{name}: {value}" for name, value in self.headers.items() if not name.startswith("Proxy")]
            head = "\r\n".join([f"{self.command} {path} HTTP/1.1", *kept, "Connection: close", "", ""])
            behind.sendall(head.encode() + self.rfile.read(int(self.headers["Content-Length"] or 0)))
            status, _, rest = b"".join(iter(lambda: behind.recv(1 << 16), b"")).partition(b"\r\n")
            self.wfile.write(status + b"\r\nConnection: close\r\n" + rest)

    def log_message(self, *_: Any) -> None:
        pass


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


@contextlib.contextmanager
def running(server: Any) -> Iterator[Any]:
    """Inside, a server serves on a thread."""
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with running(StandIn(lambda _body: ANSWER)) as server:
        yield server


@pytest.fixture
def proxy(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the stand-in, which no environment names yet."""
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    monkeypatch.setattr(server_module, "_FIRST_WAIT", 0.01)
    with running(Proxy(stand_in.server_port)) as server:
        yield server


def ask(url: str, **options: Any) -> int:
    """Asks for the models and for a completion; returns the number of tokens that the server counted."""
    client = Client(Server(url, "birds", api_key=KEY, **{"timeout": 10, "retries": 0, **options}))
    try:
        served = client.served_model()
        assert served is not None
        assert served["id"] == "birds"
        _, tokens = client.completion({"prompt": "Which moth?"})
    finally:
        client.close()
    return tokens


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_is_asked_for_the_whole_address(
    stand_in: StandIn, proxy: Proxy, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://me:pass%20word@127.0.0.1:{proxy.server_port}")
    assert ask(f"http://{HOST}:8000/v1") == 3
    basic = f"Basic {base64.b64encode(b'me:pass word').decode()}"
    at = f"http://{HOST}:8000/v1"
    assert proxy.asked == [("GET", f"{at}/models", basic), ("POST", f"{at}/completions", basic)]
    assert stand_in.keys == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize("no_proxy", [HOST, "other.invalid, .invalid", "*"])
def test_servers_that_no_proxy_names_are_asked_directly(
    stand_in: StandIn, proxy: Proxy, no_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: resolve(host.replace(HOST, "127.0.0.1"), *rest, **more)
    )
    assert ask(f"http://{HOST}:{stand_in.server_port}/v1") == 3
    assert proxy.asked == []
    monkeypatch.setenv("NO_PROXY", "another.invalid")
    assert ask(f"http://{HOST}:{stand_in.server_port}/v1") == 3
    assert len(proxy.asked) == 2


def test_this_machine_is_asked_directly(stand_in: StandIn, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
    for host in ("127.0.0.1", "localhost"):
        assert ask(f"http://{host}:{stand_in.server_port}/v1") == 3
    assert proxy.asked == []


def test_https_goes_through_a_tunnel_that_knows_no_key(
    stand_in: StandIn, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("openssl is not installed, which makes the certificate")
    words = f"req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN={HOST}"
    subprocess.run(
        [openssl, *words.split(), "-addext", f"subjectAltName=DNS:{HOST}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    stand_in.socket = context.wrap_socket(stand_in.socket, server_side=True)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{proxy.server_port}")
    with pytest.raises(ModelError, match="no secure connection"):
        ask(f"https://{HOST}/v1")
    proxy.asked.clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    assert ask(f"https://{HOST}/v1") == 3
    basic = f"Basic {base64.b64encode(b'me:secret').decode()}"
    assert set(proxy.asked) == {("CONNECT", f"{HOST}:443", basic)}
    assert stand_in.keys == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_is_named(proxy: Proxy, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", f"http://me:sesame@127.0.0.1:{proxy.server_port}")
    proxy.refusal = 407
    with pytest.raises(ModelError, match="407") as caught:
        ask(f"{scheme}://{HOST}/v1")
    assert "sesame" not in str(caught.value)
    proxy.server_close()
    with pytest.raises(ModelError, match=rf"through the proxy 127\.0\.0\.1:{proxy.server_port} \(NO_PROXY names"):
        ask(f"{scheme}://{HOST}/v1")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_by_the_byte_has_a_deadline(proxy: Proxy, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", f"127.0.0.1:{proxy.server_port}")
    proxy.drip = True
    begin = time.monotonic()
    with pytest.raises(ModelError, match=r"within 0\.5 s"):
        ask(f"{scheme}://{HOST}/v1", timeout=0.5)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "named", ["socks5://me:sesame@proxy:1080", "https://proxy:443", "http://proxy:port", "http://"]
)
def test_other_kinds_of_proxies_are_refused_without_showing_a_secret(
    proxy: Proxy, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", named)
    with pytest.raises(ModelError, match=r"http_proxy .* must be like http://proxy:3128") as caught:
        ask(f"http://{HOST}/v1")
    assert "sesame" not in str(caught.value)
    assert proxy.asked == []
