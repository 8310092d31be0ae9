"""Where a request comes from, and whether a key may be used from there.

An IPv4 address written inside IPv6 (`::ffff:192.0.2.1`) is the IPv4 address; so is a network of
such addresses. Networks are parsed once, when a catalog snapshot is read."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

import msgspec

Address: TypeAlias = tuple[int, int]  # (4 or 6, the address as a number)
Network: TypeAlias = IPv4Network | IPv6Network

FORWARDED_MAX: Final = 32  # entries of X-Forwarded-For that are looked at, from the right
_MAPPED_BITS: Final = 96


class BadNetwork(ValueError):
    """The text is neither an address nor a network in CIDR notation."""


class Networks(msgspec.Struct, frozen=True):
    """A list of networks. `ranges`: version, first and last address of each."""

    ranges: tuple[tuple[int, int, int], ...] = ()
    texts: tuple[str, ...] = ()  # as they were written, in the same order

    def find(self, address: Address) -> str:
        """The first network, as it was written, that holds the address; empty when none does."""
        version, number = address
        for at, (kind, first, last) in enumerate(self.ranges):
            if kind == version and first <= number <= last:
                return self.texts[at]
        return ""


def networks(texts: Iterable[str]) -> Networks:
    """Addresses and networks (`203.0.113.7`, `10.0.0.0/8`, `2001:db8::/32`; host bits may be set).

    Raises BadNetwork."""
    kept = tuple(text.strip() for text in texts)
    return Networks(tuple(_range(text) for text in kept), kept)


def network_of(text: str) -> Network:
    """The network in `text`, of IPv4 addresses inside IPv6 the IPv4 one. Raises BadNetwork."""
    try:
        network = ip_network(text, strict=False)
    except ValueError as ex:
        raise BadNetwork(f"{text!r} is not an address or a network such as 10.0.0.0/8") from ex
    mapped = network.network_address.ipv4_mapped if network.version == 6 else None
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))


def _range(text: str) -> tuple[int, int, int]:
    network = network_of(text)
    return network.version, int(network.network_address), int(network.broadcast_address)


@lru_cache(maxsize=10_000)  # the same few clients come again and again
def parse_address(text: str) -> Address | None:
    """The address in `text`, which may carry a port or a zone as proxies write them
    (`192.0.2.1:80`, `[2001:db8::1]:443`, `fe80::1%eth0`); None when it is none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.version, int(address)


def client_text(peer: str, forwarded: str, trusted: Networks) -> str:
    """The client's address as text: `peer`, the other end of the connection, unless that is a
    trusted proxy; then the entries of X-Forwarded-For from the right, up to the first that is not
    trusted. An entry that cannot be read ends the search: nobody who is trusted wrote it."""
    if not trusted.ranges or not forwarded:
        return peer
    address = parse_address(peer)
    if address is None or not trusted.find(address):
        return peer
    shown = peer
    for text in reversed(forwarded.rsplit(",", FORWARDED_MAX)):
        shown = text.strip()
        address = parse_address(shown)
        if address is None or not trusted.find(address):
            break
    return shown


class AddressRules(msgspec.Struct, frozen=True):
    """The lists of one key; `deny` goes before `allow`, an empty `allow` allows every address."""

    allow: Networks
    deny: Networks

    def why_not(self, client: str) -> str:
        """Why `client` may not use the key; empty when it may. An address that cannot be read is
        refused: no list can be shown to let it pass."""
        address = parse_address(client)
        if address is None:
            return "the client's address is unknown and this key has address rules"
        denied = self.deny.find(address)
        if denied:
            return f"{client} is in {denied} of this key's deny list"
        if self.allow.ranges and not self.allow.find(address):
            return f"{client} is not in this key's allow list"
        return ""
