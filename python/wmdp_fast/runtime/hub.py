"""Whether the Hugging Face hub can be reached, found out once and at once.

`huggingface_hub` asks a host that it cannot reach five times more, which takes half a minute and prints two lines each
time. That is right for a server that is busy; a machine without a network, or a name that was meant for a folder, is
better told so.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

# Seconds that the other end may take to answer.
_PATIENCE = 10


def why_unreachable(address: str) -> str | None:
    """Why no connection to the host of an address comes about; None if one does, or a proxy would have to be asked.

    Args:
        address: Such as `https://huggingface.co`.
    """
    parts = urlsplit(address)
    host = parts.hostname
    if host is None or (parts.scheme in getproxies() and not proxy_bypass(host)) or "all" in getproxies():
        return None
    try:
        socket.create_connection((host, parts.port or (80 if parts.scheme == "http" else 443)), _PATIENCE).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return None
