"""Address rules: networks of both versions, clients behind proxies, deny before allow."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.addresses import AddressRules, BadNetwork, client_text, networks, parse_address

V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None)


def rules(allow=(), deny=()):
    return AddressRules(networks(allow), networks(deny))


@given(address=V4 | V6, inside=V4 | V6, bits=st.integers(0, 128))
def test_a_network_holds_what_the_standard_library_says(address, inside, bits):
    network = f"{inside}/{min(bits, inside.max_prefixlen)}"
    expected = address in ipaddress.ip_network(network, strict=False)
    assert bool(networks([network]).find(parse_address(str(address)))) == expected


@given(address=V4, bits=st.integers(0, 32))
def test_an_ipv4_address_within_ipv6_is_the_ipv4_address(address, bits):
    mapped = f"::ffff:{address}"
    assert parse_address(mapped) == parse_address(str(address))
    for network in (f"{address}/{bits}", f"{mapped}/{96 + bits}"):
        assert networks([network]).find(parse_address(mapped))
        assert networks([network]).find(parse_address(str(address)))


def test_all_of_ipv6_is_not_all_of_ipv4():
    assert not networks(["::/0"]).find(parse_address("192.0.2.1"))
    assert not networks(["0.0.0.0/0"]).find(parse_address("2001:db8::1"))


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "example.org", "10.0.0", "::1/129", "1/2/3"])
def test_what_is_no_network_is_refused(text):
    with pytest.raises(BadNetwork, match="not an address"):
        networks([text])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1:8080 ", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
    ],
)
def test_addresses_as_proxies_write_them(text, address):
    expected = ipaddress.ip_address(address)
    assert parse_address(text) == (expected.version, int(expected))


@pytest.mark.parametrize("text", ["", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "[]"])
def test_what_is_no_address(text):
    assert parse_address(text) is None


def test_without_rules_every_address_may_come():
    assert rules().why_not("203.0.113.9") == ""


def test_deny_goes_before_allow_and_is_named():
    both = rules(allow=["10.0.0.0/8", "2001:db8::/32"], deny=["10.1.0.0/16"])
    assert both.why_not("10.2.3.4") == ""
    assert both.why_not("2001:db8::5") == ""
    assert "10.1.0.0/16" in both.why_not("10.1.2.3")
    assert "allow list" in both.why_not("192.0.2.1")
    assert "allow list" in both.why_not("2001:db9::1")


def test_an_address_that_cannot_be_read_passes_no_rule():
    assert rules(deny=["10.0.0.0/8"]).why_not("unknown")
    assert rules(allow=["0.0.0.0/0"]).why_not("")


PROXIES = networks(["10.0.0.0/8", "::1", "2001:db8:ffff::/48"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # nobody trusts the peer
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "192.0.2.66, 198.51.100.1,10.0.0.2", "198.51.100.1"),  # a forged first entry
        ("::1", "2001:db8::7, 2001:db8:ffff::1", "2001:db8::7"),
        ("::ffff:10.0.0.1", "198.51.100.1:5123", "198.51.100.1:5123"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),  # all trusted: the farthest
        ("10.0.0.1", "198.51.100.1, nonsense, 10.0.0.2", "nonsense"),
        ("10.0.0.1", "198.51.100.1, ", ""),
    ],
)
def test_the_client_behind_trusted_proxies(peer, forwarded, client):
    assert client_text(peer, forwarded, PROXIES) == client


def test_without_trusted_proxies_the_header_says_nothing():
    assert client_text("10.0.0.1", "198.51.100.1", networks([])) == "10.0.0.1"


def test_a_long_chain_of_proxies_is_read_from_the_right_only():
    chain = ", ".join(["198.51.100.1"] + ["10.0.0.2"] * 5000)
    assert client_text("10.0.0.1", chain, PROXIES) != "198.51.100.1"


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_breaks_the_search(peer, forwarded):
    rules(allow=["10.0.0.0/8"]).why_not(client_text(peer, forwarded, PROXIES))
