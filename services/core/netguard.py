"""Which URLs and addresses a user may make us connect to.

Only addresses of the public Internet: everything that the IANA special-purpose registries reserve
is refused, as is IPv6 that carries an IPv4 address inside (6to4, NAT64, Teredo), because what it
reaches is decided elsewhere. An operator's allow list names the networks that are open all the
same. The answer of a name lookup is judged whole: one refused address refuses the name.
"""

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

import msgspec

from services.core.addresses import Networks, networks, parse_address

URL_MAX: Final = 8_192  # characters
_HOST_MAX: Final = 253
_PORTS: Final = {"http": 80, "https": 443}
_FREE_PORTS: Final = 1024  # and above: the ones below belong to other protocols
_CLOSED: Final = networks(
    (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local: where clouds tell their secrets
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",
        "::/3",  # loopback, IPv4-compatible, NAT64 (64:ff9b::/96, 64:ff9b:1::/48), discard
        "2001::/23",  # protocol assignments, Teredo
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
        "4000::/2",
        "8000::/1",  # unique local, link-local, multicast
    )
)


class UrlRefused(ValueError):
    """We do not connect there; the text says why and may be shown to the user."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A URL that may be tried: `url` without a fragment, `host` in lower case."""

    url: str
    scheme: str
    host: str
    port: int

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port


def check_url(text: str, *, schemes: tuple[str, ...] = ("https", "http")) -> Target:
    """The parts of a URL that is fit to be fetched; says nothing yet about its address.

    Raises UrlRefused."""
    if len(text) > URL_MAX:
        raise UrlRefused(f"the URL is longer than {URL_MAX} characters")
    if not text.isascii() or any(not "!" <= letter <= "~" or letter == "\\" for letter in text):
        raise UrlRefused("the URL has characters that must be percent-encoded")
    try:
        parts = urlsplit(text)
        port, host = parts.port, (parts.hostname or "").rstrip(".")
    except ValueError as error:
        raise UrlRefused(f"the URL cannot be read: {error}") from error
    if parts.scheme not in schemes:
        raise UrlRefused(f"the URL must begin with {' or '.join(s + '://' for s in schemes)}")
    if "@" in parts.netloc:
        raise UrlRefused("the URL must not carry a user name or password")
    if not host or len(host) > _HOST_MAX or "%" in host:
        raise UrlRefused("the URL names no host")
    usual = _PORTS[parts.scheme]
    port = usual if port is None else port
    if port not in _PORTS.values() and port < _FREE_PORTS:
        raise UrlRefused(f"port {port} is not one for the web")
    url = parts._replace(fragment="").geturl()
    return Target(url=url, scheme=parts.scheme, host=host, port=port)


class Guard:
    """Which addresses are open. `allow` are networks of the operator (`10.1.0.0/16`, `::1`).

    Raises BadNetwork for an entry that is none."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._allow: Networks = networks(allow)

    def permits(self, address: str) -> bool:
        """Whether we may connect to a numeric address; what cannot be read is closed."""
        parsed = parse_address(address)
        if parsed is None:
            return False
        return bool(self._allow.find(parsed)) or not _CLOSED.find(parsed)

    def check(self, host: str, addresses: Iterable[str]) -> None:
        """The whole answer of a name lookup. Raises UrlRefused."""
        for address in addresses:
            if not self.permits(address):
                raise UrlRefused(f"{host} is at {address}, which is not open to requests")
