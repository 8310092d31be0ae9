"""`price whatif` and `price margin` over a real log and ledger."""

import json

import msgspec
import pytest
from click.testing import CliRunner

from services.cli.context import Cli
from services.cli.price import price
from services.core.ids import uuid7_text
from services.core.prices import Overrides
from services.meter.replay import replay
from services.meter.settled_events import settled_events
from tests.parts.books import MODEL, USD, now_us

pytest_plugins = ["tests.parts.clickhouse_fixtures", "tests.parts.plant_fixture"]

FILE = f"""
vendor = "anthropic"
[[models]]
model = "{MODEL}"
context_window = 200000
max_output_tokens = 64000
usd_per_million = {{ input = "6", cache_read = "0.3", cache_write_5m = "1", cache_write_1h = "1", output = "15" }}
"""  # noqa: E501


@pytest.fixture
def spent(plant):
    """A plant with three billed requests, one free with a provider's cost, one dead."""
    books = plant.books
    lease = books.lease(books.account(10), 2 * USD)
    for _ in range(3):
        plant.write(lease.pair(input=1000, output=100))
    failed = lease.request()
    dead = lease.usage(uuid7_text())
    dead.charged_nano = 1
    plant.write([failed, lease.error(failed.request_id, provider_cost_nano=10**8), dead])
    plant.catch_up(("relay", "ledger", "clickhouse"))
    replay(plant.bus)
    return plant


def _said(plant, monkeypatch, *arguments: str) -> dict:
    monkeypatch.setattr(Cli, "config", lambda self: plant.config)
    done = CliRunner().invoke(price, [*arguments, "--json"], obj=Cli())
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_each_request_counts_once(spent):
    found = list(settled_events(spent.bus, spent.books.engine, None, None))
    assert len(found) == 4
    assert len({each.event_id for each in found}) == 4
    middle = sorted(each.occurred_at for each in found)[2]
    assert len(list(settled_events(spent.bus, spent.books.engine, middle, None))) == 2
    assert len(list(settled_events(spent.bus, spent.books.engine, None, middle))) == 2


def test_whatif(spent, monkeypatch, tmp_path):
    file = tmp_path / "other.toml"
    file.write_text(FILE)
    before = spent.books.state()
    answer = _said(spent, monkeypatch, "whatif", "--prices", str(file))
    assert answer["now_nano"] == 3 * 4_500_000
    assert answer["then_nano"] == 3 * 7_500_000
    assert [line["model"] for line in answer["models"]] == [MODEL]
    none = _said(
        spent, monkeypatch, "whatif", "--prices", str(file), "--until", "2020-01-01T00:00:00Z"
    )
    assert none == {"models": [], "now_nano": 0, "then_nano": 0}
    assert spent.books.state() == before


def test_margin(spent, monkeypatch):
    answer = _said(spent, monkeypatch, "margin")
    (line,) = [each for each in answer["lines"] if each["model"] == MODEL]
    assert (line["channel"], line["requests"], line["free"]) == ("main", 4, 1)
    assert line["margin_nano"] == -(10**8)
    assert len(answer["warnings"]) == 1
    assert answer["below_cost"] == []
    assert line["charged_nano"] == spent.books.balances()["revenue"]

    model = spent.books.prices.book.models[MODEL]
    dear = msgspec.structs.replace(
        model, provider_classes={k: v + 1 for k, v in model.classes.items()}
    )
    spent.books.catalog.import_prices(Overrides(models={MODEL: dear}), now_us())
    answer = _said(spent, monkeypatch, "margin")
    assert {each["usage_class"] for each in answer["below_cost"]} == set(model.classes)
