"""Connections to a server, straight or through the proxy that the environment names.

`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` mean what they do for curl, but for one thing: a server on this
machine's loopback is always asked directly.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_HTTP_PORT, _HTTPS_PORT = 80, 443


@dataclass(frozen=True)
class Proxy:
    """A proxy that speaks HTTP.

    Attributes:
        host: Where it is.
        port: Its port.
        secrets: Its password, and what of it is sent: nothing that may be shown.
    """

    host: str
    port: int
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What it wants to be told, beside a request."""
        return {"Proxy-Authorization": f"Basic {self.secrets[-1]}"} if self.secrets else {}


@dataclass(frozen=True)
class Route:
    """How a server is reached.

    Attributes:
        scheme: `http` or `https`.
        host: The server.
        port: Its port, or None for that of the scheme.
        proxy: What is in between, if anything.
    """

    scheme: str
    host: str
    port: int | None
    proxy: Proxy | None

    def target(self, path: str) -> str:
        """What a request asks for. A proxy that reads it is told where it goes; one that forwards a tunnel is not."""
        if self.proxy is None or self.scheme == "https":
            return path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port or _HTTP_PORT}{path}"

    @property
    def headers(self) -> dict[str, str]:
        """What each request says to a proxy that reads it."""
        return self.proxy.headers if self.proxy is not None and self.scheme == "http" else {}

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """A connection that is not open yet."""
        where = (self.host, self.port) if self.proxy is None else (self.proxy.host, self.proxy.port)
        if self.scheme == "http":
            return http.client.HTTPConnection(*where, timeout=timeout)
        connection = _TLSConnection(*where, name=self.host, timeout=timeout)
        if self.proxy is not None:
            connection.set_tunnel(self.host, self.port or _HTTPS_PORT, self.proxy.headers)
        return connection


def route_to(url: SplitResult) -> Route:
    """How a server is reached from here, by the environment as it is now.

    Raises:
        ValueError: The environment names a proxy of a kind that is not spoken here.
    """
    # Here, as it takes a while to load.
    from urllib.request import getproxies_environment, proxy_bypass

    host = url.hostname or ""
    proxies = getproxies_environment()
    named = proxies.get(url.scheme) or proxies.get("all")
    direct = not named or _is_loopback(host) or bool(proxy_bypass(host, proxies))
    proxy = None if direct or not named else _proxy(named, url.scheme)
    return Route(url.scheme, host, url.port, proxy)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _proxy(named: str, scheme: str) -> Proxy:
    url = urlsplit(named if "://" in named else f"http://{named}")
    try:
        host, port = url.hostname, url.port
    except ValueError:  # Its port is no number.
        host, port = None, None
    if url.scheme != "http" or not host:
        # The address may hold a password.
        raise ValueError(
            f"the environment's {scheme}_proxy (or all_proxy) must be like http://proxy:3128, as other kinds of proxies"
            " are not spoken here; NO_PROXY names servers that are asked directly"
        )
    secrets: tuple[str, ...] = ()
    if url.username is not None:
        name, password = unquote(url.username), unquote(url.password or "")
        sent = base64.b64encode(f"{name}:{password}".encode()).decode()
        secrets = (password, sent) if password else (sent,)
    return Proxy(host, port or _HTTP_PORT, secrets)


class _TLSConnection(http.client.HTTPSConnection):
    """One whose socket is known before the server has said anything, so that it can be shut."""

    def __init__(self, host: str, port: int | None, *, name: str, timeout: float) -> None:
        self._own_context = ssl.create_default_context()
        self._name = name
        super().__init__(host, port, timeout=timeout, context=self._own_context)

    def connect(self) -> None:
        """Connects, through the proxy's tunnel if there is one; the handshake comes last."""
        http.client.HTTPConnection.connect(self)
        wrapped = self._own_context.wrap_socket(self.sock, server_hostname=self._name, do_handshake_on_connect=False)
        self.sock = wrapped
        wrapped.do_handshake()
