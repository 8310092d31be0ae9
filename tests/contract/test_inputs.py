"""Inputs that a job names by URL, for providers that take bytes: fetched with care or refused."""

import base64
from types import SimpleNamespace

import pytest

from services.backends.http.fetch import Fetcher
from services.batch.inputs import InputAway, InputMissing, files_of
from services.core.netguard import Guard
from tests.parts.odd_server import says, server
from tests.parts.stack import ROOT

GOLDEN = ROOT / "tests" / "golden" / "media"
PICTURE = (GOLDEN / "picture.png").read_bytes()


def files(value, *, takes_urls=False, allow=("127.0.0.1",), limit=1_000_000):
    """What becomes of the input `image` with this value."""
    parts = SimpleNamespace(
        fetcher=Fetcher(Guard(allow)),
        config=SimpleNamespace(artifacts=SimpleNamespace(upload_max_bytes=limit)),
    )
    held = SimpleNamespace(parameters={"prompt": "x", "image": value}, account_id="a")
    return files_of(parts, held, takes_urls=takes_urls)


def test_a_url_is_fetched_for_a_provider_that_takes_bytes():
    with server(says(f"content-length: {len(PICTURE)}", body=PICTURE)) as there:
        assert files(there.url + "/a.png") == {"image": PICTURE}
        assert files([there.url + "/a.png"]) == {"image": PICTURE}
        assert len(there.heads) == 2


@pytest.mark.parametrize(
    "body", [b"", b"<html>no picture</html>", PICTURE[:-9], (GOLDEN / "sound.wav").read_bytes()]
)
def test_what_is_no_picture_goes_to_no_provider(body):
    there_is = says("content-type: image/png", f"content-length: {len(body)}", body=body)
    with server(there_is) as there, pytest.raises(InputMissing, match="image: it is"):
        files(there.url)


def test_it_is_left_to_a_provider_that_fetches_it_itself():
    with server(says("content-length: 4", body=b"abcd")) as there:
        assert files(there.url, takes_urls=True) == {}
        assert there.heads == []


def test_what_we_have_is_not_fetched():
    url = "data:image/png;base64," + base64.b64encode(b"abcd").decode()
    assert files(url) == files(url, takes_urls=True) == {"image": b"abcd"}
    assert files("") == {}


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{}/",
        "http://localhost:{}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:8080/",
        "file:///etc/passwd",
        "http://user:secret@127.0.0.1:{}/",
        "nonsense",
    ],
)
def test_closed_places_are_not_asked(url):
    with server(says("content-length: 0")) as there:
        for takes_urls in (False, True):  # nor is a provider sent there, which may reach more
            with pytest.raises(InputMissing, match="image"):
                files(url.format(there.port), allow=(), takes_urls=takes_urls)
        assert there.heads == []


def test_a_redirect_to_a_closed_place_is_refused():
    there_is = says("HTTP/1.1 302 F", "location: http://169.254.169.254/", "content-length: 0")
    with server(there_is) as there, pytest.raises(InputMissing, match="not open"):
        files(there.url)


def test_too_large_is_refused():
    with server(says("content-length: 5", body=b"abcde")) as there, pytest.raises(InputMissing):
        files(there.url, limit=4)


@pytest.mark.parametrize(("status", "error"), [(404, InputMissing), (503, InputAway)])
def test_other_answers(status, error):
    there_is = says(f"HTTP/1.1 {status} X", "content-length: 0")
    with server(there_is) as there, pytest.raises(error, match=str(status)):
        files(there.url)


def test_what_was_cut_short_may_come_whole_later():
    with server(says("content-length: 9", body=b"half")) as there, pytest.raises(InputAway):
        files(there.url)
