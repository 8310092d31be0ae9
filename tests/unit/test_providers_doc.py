"""docs/providers.md: its examples work and it names every provider and every fault."""

import re
from pathlib import Path

import msgspec
import pytest

from schemas.config import PROVIDERS
from services.backends import settings
from services.backends.http.client import Reply
from services.batch import bootstrap
from services.batch.providers import at_once, calls, description, port
from services.core.catalog import Channel
from services.sim.media import knobs

TEXT = (Path(__file__).parent.parent.parent / "docs" / "providers.md").read_text("utf-8")
CHANNEL = Channel(
    name="a",
    dialect="",
    base_url="https://acme.example/api",
    credential="sk-1",
    models={"m": "m"},
    groups=("default",),
)
ORDER = port.Order(client_ref="r", kind="image", model="m", params={"prompt": "a toll booth"})


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_description_describes_a_provider(tmp_path):
    path = tmp_path / "acme.toml"
    path.write_text(next(block for block in blocks("toml") if "[poll]" in block))
    assert description.load(path).name == "acme"


def test_every_provider_stands_in_the_table():
    named = set(re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.MULTILINE))
    assert named - {"provider"} == set(bootstrap.providers(settings.load(None, {})))


def test_the_configuration_takes_every_provider_and_no_other():
    assert set(PROVIDERS) == set(bootstrap.providers(settings.load(None, {})))


def test_every_fault_stands_in_the_table():
    table = TEXT.partition("| faults |")[2]
    first_columns = "".join(line.split("|")[1] for line in table.splitlines() if "`" in line)
    named = re.findall(r"`([a-z0-9-]+)`", first_columns)
    assert sorted(named) == sorted(knobs.DEFAULTS)


class Says:
    """Answers every call with one reply, or with an error of the transport."""

    def __init__(self, status=200, body=b"", error=None):
        self.status, self.body, self.error = status, body, error

    def call(self, method, url, **named):
        if self.error:
            raise self.error
        self.asked = (method, url, named)
        return Reply(status=self.status, headers={}, body=self.body)


@pytest.fixture
def adapter():
    """The ten lines of the page, made with the names that an adapter imports."""
    names = {**vars(port), **vars(calls), **vars(at_once)}
    (code,) = blocks("python")
    exec(code, names)
    return names["Acme"]()


def test_ten_lines_are_an_adapter(adapter):
    made = Says(body=b'{"picture": "https://acme.example/1.png"}')
    done = adapter.create(made, CHANNEL, ORDER)
    assert done.outputs[0].url == "https://acme.example/1.png"
    method, url, named = made.asked
    assert (method, url) == ("POST", "https://acme.example/api/draw")
    assert named["headers"] == {"x-acme-key": "sk-1"}
    assert msgspec.json.decode(msgspec.json.encode(named["json"]))["text"] == "a toll booth"
    for http, answer in (
        (Says(body=b"<html>"), port.Unclear),
        (Says(status=502), port.Unclear),
        (Says(status=422), port.Refused),
        (Says(error=port.NotConnected("no")), port.NotSent),
        (Says(error=port.NoReply("late")), port.Unclear),
    ):
        assert isinstance(adapter.create(http, CHANNEL, ORDER), answer)
    assert isinstance(adapter.find(made, CHANNEL, ORDER), port.Unsupported)
