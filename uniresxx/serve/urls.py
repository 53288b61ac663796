"""A photo from an https address, for servers that allow it: public addresses only, no redirects, capped.

The name is resolved once, and the connection goes to the very address that was checked: a second answer of the name
server could name a private one.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from urllib.parse import urlsplit

from uniresxx.serve.refused import Refused
from uniresxx.serve.settings import ServeSettings

PORT = 443
CHUNK = 2**16
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_UNSAFE = re.compile(r"[\s\x00-\x20\x7f-\U0010ffff\\]")
Resolve = Callable[[str], list[str]]


def resolve(host: str) -> list[str]:
    """All addresses of a name."""
    found = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def public_address(host: str, addresses: list[str]) -> str:
    """The address to connect to; refused where any of the name's addresses is not a public one."""
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not all(one.is_global and not one.is_multicast for one in (address, _inner(address))):
            raise Refused(400, f"image URL: {host} is not a public address")
    if not addresses:
        raise Refused(400, f"image URL: {host} has no address")
    return addresses[0]


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


class PinnedConnection(http.client.HTTPSConnection):
    """HTTPS to one checked address; the certificate must be that of the host's name."""

    def __init__(self, host: str, address: str, timeout: float) -> None:
        super().__init__(host, PORT, timeout=timeout)
        self._address, self._tls = address, ssl.create_default_context()

    def connect(self) -> None:
        """Connect to the address, whatever the name means by now."""
        plain = socket.create_connection((self._address, PORT), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


Connect = Callable[[str, str, float], http.client.HTTPConnection]


def fetched(
    url: str, settings: ServeSettings, lookup: Resolve = resolve, connect: Connect = PinnedConnection
) -> bytes:
    """The bytes behind an https address.

    Args:
        url: as the client gave it.
        settings: caps on bytes and seconds.
        lookup: name to addresses.
        connect: opens the connection to host and address.

    Raises:
        Refused: another scheme, port or user in it, a private address, a redirect or an error, too large, too slow.
    """
    if not settings.image_urls:
        raise Refused(400, "image URLs are off in this server: send the picture as data:image/png;base64,…")
    host, target = _parts(url)
    end = monotonic() + settings.url_seconds
    connection = None
    try:
        connection = connect(host, public_address(host, lookup(host)), settings.url_seconds)
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "uniresxx"})
        response = connection.getresponse()
        if response.status != 200:
            raise Refused(400, f"image URL: {host} answered {response.status}; redirects are not followed")
        data = bytearray()
        while chunk := response.read1(CHUNK):
            data += chunk
            if len(data) > settings.max_photo_bytes:
                raise Refused(413, f"image URL: over the cap of {settings.max_photo_bytes} bytes")
            if monotonic() > end:
                raise Refused(400, f"image URL: {host} took longer than {settings.url_seconds:g} s")
        return bytes(data)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise Refused(400, f"image URL: {host} cannot be read ({type(error).__name__})") from None
    finally:
        if connection is not None:
            connection.close()


def _parts(url: str) -> tuple[str, str]:
    """Host and request target of an address that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise Refused(400, "image URL: not a valid address") from None
    if len(url) > 2000 or _UNSAFE.search(url):
        raise Refused(400, "image URL: not a valid address (spaces and other letters must be escaped)")
    if parts.scheme != "https" or not host or port not in (None, PORT) or "@" in parts.netloc:
        raise Refused(400, "image URL: only https://host/…, without user or port")
    return host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
