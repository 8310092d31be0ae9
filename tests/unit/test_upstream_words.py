"""What clients read of an upstream's words."""

import json

import pytest

from services.core.upstream_words import client_text

SECRETS = ("10.1.2.3", "8443", "media.internal", "::1", "sk-abcdef", "/srv/", "fe80", "upstream-a")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("The prompt is too long.", "The prompt is too long."),
        (json.dumps({"error": {"message": "size: not offered", "code": 1}}), "size: not offered"),
        (json.dumps({"problem": {"text": "The engine broke."}}), "The engine broke."),
        (json.dumps({"detail": [{"loc": ["n"], "msg": "n is too large"}]}), "n is too large"),
        (json.dumps({"detail": "no such model"}), "no such model"),
        ("see https://docs.vendor.com/errors?id=1 for help", "see ... for help"),
        ("at 14:30:05 the ratio was 16:9, v1.2 of gen-4.5", None),
    ],
)
def test_the_sentence_for_people_is_shown(said, shown):
    assert client_text(said, "-") == (said if shown is None else shown)


@pytest.mark.parametrize(
    "said",
    [
        "ConnectionError: HTTPSConnectionPool(host='media.internal', port=8443): Max retries",
        "connect to 10.1.2.3:8443 failed",
        "tried [fe80::1]:8443 and ::1 in vain",
        "Incorrect API key provided: sk-abcdef*****ghij",
        "upstream-a.media.internal:8443/v1 does not resolve",
        "No such file: /srv/tollgate/artifacts/ab/abcd",
        "Bearer sk-abcdefghijk is refused by http://10.1.2.3:8443/v1/videos",
        json.dumps({"error": {"message": "http://media.internal:8443/x is down"}}),
    ],
)
def test_nothing_tells_where_the_upstream_is_and_how_it_was_reached(said):
    shown = client_text(said, "-")
    assert not [each for each in SECRETS if each in shown], shown


@pytest.mark.parametrize(
    "said",
    [
        "",
        "ConnectionError: ('Connection aborted.', RemoteDisconnected('closed'))",
        "<html><body>502 nginx</body></html>",
        '{"a": 1}',
        "{half",
        "http://10.1.2.3/",
    ],
)
def test_what_has_no_sentence_is_replaced(said):
    assert client_text(said, "it failed") == "it failed"


def test_a_long_text_is_cut():
    assert len(client_text("word " * 200, "-")) == 300
