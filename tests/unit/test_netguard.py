"""Which URLs and addresses may be connected to."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.addresses import BadNetwork
from services.core.netguard import Guard, UrlRefused, check_url

CLOSED = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::7f00:1",  # IPv4-compatible
    "64:ff9b::7f00:1",  # NAT64
    "64:ff9b:1::a00:1",
    "100::1",  # discard
    "2001::1",  # Teredo
    "2001:db8::1",
    "2002:7f00:1::1",  # 6to4
    "3fff::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "",
    "localhost",
    "256.1.1.1",
]
OPEN = [
    "8.8.8.8",
    "1.1.1.1",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.1",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "2606:4700:4700::1111",
    "2a00:1450::1",
]


@pytest.mark.parametrize("address", CLOSED)
def test_closed_addresses(address):
    assert not Guard().permits(address)


@pytest.mark.parametrize("address", OPEN)
def test_open_addresses(address):
    assert Guard().permits(address)


@given(st.ip_addresses())
def test_nothing_is_open_that_the_registries_reserve(address):
    if Guard().permits(str(address)):
        assert address.is_global
        assert not address.is_multicast
        if isinstance(address, ipaddress.IPv6Address):
            assert address.sixtofour is None
            assert address.teredo is None


def test_the_allow_list_opens_what_it_names_and_nothing_else():
    guard = Guard(["10.1.0.0/16", "::1", "127.0.0.2"])
    assert guard.permits("10.1.255.255")
    assert guard.permits("::1")
    assert guard.permits("127.0.0.2")
    assert guard.permits("::ffff:10.1.0.1")
    assert not guard.permits("10.2.0.1")
    assert not guard.permits("127.0.0.1")
    assert guard.permits("8.8.8.8")


def test_a_wrong_network_is_an_error():
    with pytest.raises(BadNetwork):
        Guard(["10.0.0.0/33"])


def test_one_closed_address_refuses_the_name():
    Guard().check("good.example", ["8.8.8.8", "1.1.1.1"])
    with pytest.raises(UrlRefused, match=r"10\.0\.0\.1"):
        Guard().check("mixed.example", ["8.8.8.8", "10.0.0.1"])


def test_parts_of_a_good_url():
    target = check_url("https://Media.Example.:8443/a/b?c=d#e")
    assert (target.scheme, target.host, target.port) == ("https", "media.example", 8443)
    assert target.url == "https://Media.Example.:8443/a/b?c=d"
    assert check_url("http://a.example").origin == ("http", "a.example", 80)
    assert check_url("https://[2606:4700::1]/").host == "2606:4700::1"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "media.example/a",
        "ftp://media.example/a",
        "file:///etc/passwd",
        "gopher://media.example/",
        "javascript:alert(1)",
        "https:///a",
        "https://",
        "https://user@media.example/",
        "https://user:secret@media.example/",
        "https://good.example@10.0.0.1/",
        "https://@media.example/",
        "https://media.example:99999/",
        "https://media.example:abc/",
        "https://media.example:22/",
        "https://media.example:0/",
        "https://media.example/a b",
        "https://media.example/\r\nHost: other",
        "https://media.example\\@10.0.0.1/",
        "https://media.example/\x00",
        "https://mediä.example/",
        "https://[::1/",
        "https://fe80::1%25eth0/",
        "https://[fe80::1%25eth0]/",
        "https://" + "a" * 300 + "/",
        "https://media.example/" + "a" * 9000,
    ],
)
def test_bad_urls(url):
    with pytest.raises(UrlRefused):
        check_url(url)


def test_schemes_can_be_narrowed():
    with pytest.raises(UrlRefused, match="https://"):
        check_url("http://media.example/", schemes=("https",))


@given(st.text(max_size=100))
def test_any_text_is_a_target_or_refused(text):
    try:
        target = check_url(text)
    except UrlRefused:
        return
    assert target.host
    assert 0 < target.port < 65_536
