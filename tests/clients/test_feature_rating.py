"""What a unit costs, seen from outside: groups, channels, service tiers, long inputs, server tools,
and a provider that uses more than was held. Prices are worked out here in decimals, from the price
files and the units that the provider reports."""

import json
import tomllib
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from decimal import ROUND_HALF_UP, Decimal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.parts import stack as parts
from tests.parts.feature import wait_until
from tests.parts.stack import ROOT, Stack, started
from tests.parts.wire import PATHS, post

MODELS = {"anthropic": "claude-haiku-4-5", "chat": "gpt-5-mini", "responses": "gpt-5-mini"}
MULTIPLIERS = {"cheap": "0.8", "dear": "5.0"}
USD = 10**9
OWN_PRICES = """
vendor = "own"
[[channels]]
channel = "two-{dialect}"
model = "{model}"
usd_per_million = {{ input = "7", output = "11" }}
provider_usd_per_million = {{ input = "8", output = "1" }}
"""


def channels(sim_url: str) -> list[dict]:
    out = []
    for dialect, model in MODELS.items():

        def channel(name, group, path="", dialect=dialect, model=model):
            where = {"name": f"{name}-{dialect}", "dialect": dialect, "base_url": sim_url + path}
            models = [model]
            if dialect == "anthropic":
                models += ["claude-sonnet-4-5", "claude-opus-4-5"]
            return {**where, "models": models, "groups": [group]}

        out += [channel(name, name) for name in ("default", "one", "two", *MULTIPLIERS)]
        out.append(channel("over", "over", "/fault/sim-overcharge-3"))
    return out


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """One worker, for what is written off is counted per worker."""
    running = Stack(tmp_path_factory.mktemp("rating"))
    edge = {"port": running.port, "workers": 1}
    parts.write_config(running.config_file, {"edge": edge}, channels(running.sim.base_url))
    text = running.config_file.read_text()
    for group, multiplier in MULTIPLIERS.items():
        named = f'[[groups]]\nname = "{group}"'
        assert named in text
        text = text.replace(named, f"{named}\nmultiplier = {multiplier}")
    running.config_file.write_text(text)
    yield from started(running)


def price_row(model: str) -> dict:
    for vendor in ("anthropic", "openai"):
        raw = tomllib.loads((ROOT / "schemas" / "prices" / f"{vendor}.toml").read_text())
        for row in raw["models"]:
            if row["model"] == model:
                return row
    raise LookupError(model)


def due_nano(units: dict[str, int], prices: dict[str, str], multiplier: str = "1") -> int:
    """USD per million, times units, times multiplier, to the nearest nano-dollar."""
    usd = sum(Decimal(prices[name]) * count for name, count in units.items()) / 10**6
    return int((usd * Decimal(multiplier) * USD).to_integral_value(ROUND_HALF_UP))


def served(program, dialect, *, group="default", stream=False, **more):
    """(row of `/v1/usage`, units by the provider's own log) of one request."""
    before, key = program.sim.last_id(), program.new_key(group)
    reply = post(program, dialect, key, stream=stream, model=MODELS[dialect], **more)
    reply.body()
    assert reply.status == 200
    row = program.wait_for_row(reply.header("x-tollgate-request-id"), key)
    (call,) = program.sim.wait_for_calls(1, after=before)
    return row, call["units"]


def tier_of(program, request_id: str) -> str:
    found = program.sql(f"SELECT tier FROM requests WHERE request_id = '{request_id}'")
    return found[0]["tier"]


@pytest.mark.parametrize("dialect", list(PATHS))
def test_a_group_multiplies_the_price(program, dialect):
    """0.8 and 5.0 times, to the nano."""
    prices = price_row(MODELS[dialect])["usd_per_million"]
    costs = []
    for group, multiplier in (("cheap", "0.8"), ("default", "1"), ("dear", "5.0")):
        row, units = served(program, dialect, group=group, stream=True)
        assert row["cost_nano"] == due_nano(units, prices, multiplier)
        costs.append(row["cost_nano"])
    assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("dialect", list(PATHS))
def test_the_same_model_has_two_prices_on_two_channels(program, dialect, tmp_path):
    """Imported by the operator, tried first with --dry-run; requests before keep their version."""
    model = MODELS[dialect]
    file = tmp_path / "own.toml"
    file.write_text(OWN_PRICES.format(dialect=dialect, model=model))
    before, units = served(program, dialect, group="two")
    assert before["cost_nano"] == due_nano(units, price_row(model)["usd_per_million"])
    tried = json.loads(program.cli("price", "import", str(file), "--dry-run", "--json").stdout)
    changed = {(each["channel"], each["class"]): each["new_usd"] for each in tried["changes"]}
    assert changed == {
        (f"two-{dialect}", "input"): "7",
        (f"two-{dialect}", "output"): "11",
        (f"two-{dialect}", "cost:input"): "8",
        (f"two-{dialect}", "cost:output"): "1",
    }
    assert served(program, dialect, group="two")[0]["price_version"] == before["price_version"]
    done = json.loads(program.cli("price", "import", str(file), "--json").stdout)
    assert (done["price_version"], done["in_force"]) == (tried["price_version"], True)

    def is_in_force() -> bool:
        return served(program, dialect, group="two")[0]["price_version"] == done["price_version"]

    wait_until(is_in_force)
    for group in ("one", "two"):
        row, units = served(program, dialect, group=group, stream=True)
        prices = price_row(model)["usd_per_million"]
        own = {**prices, "input": "7", "output": "11"} if group == "two" else prices
        assert row["cost_nano"] == due_nano(units, own)
        assert row["channel"] == f"{group}-{dialect}"
    margin = json.loads(program.cli("price", "margin", "--json").stdout)
    below = {(e["channel"], e["usage_class"]) for e in margin["below_cost"] if e["channel"]}
    assert (f"two-{dialect}", "input") in below
    assert any(f"input of {model}" in each and "two-" in each for each in margin["warnings"])


def test_a_price_file_with_a_wrong_field_changes_nothing(program, tmp_path):
    file = tmp_path / "own.toml"
    wrong = OWN_PRICES.format(dialect="chat", model="gpt-5-mini").replace('"7"', '"seven"')
    file.write_text(wrong)
    versions = program.cli("price", "list", "--versions", "--json").stdout
    for more in ([], ["--dry-run"]):
        done = program.cli("price", "import", str(file), *more, check=False)
        assert done.returncode != 0
        assert "channels[0].usd_per_million.input: not a decimal number" in done.stderr
    file.write_text(wrong.replace('"seven"', '"7"').replace("gpt-5-mini", "gpt-5-minus"))
    done = program.cli("price", "import", str(file), check=False)
    assert "'gpt-5-minus'" in done.stderr
    assert program.cli("price", "list", "--versions", "--json").stdout == versions


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", ["anthropic", "responses"])  # chat tells no searches
def test_searches_are_charged_by_the_thousand(program, dialect, stream):
    tools = {
        "anthropic": [{"type": "web_search_20250305", "name": "web_search"}],
        "responses": [{"type": "web_search"}],
    }[dialect]
    row, units = served(program, dialect, stream=stream, text="sim:search 3 and say", tools=tools)
    assert units["web_search"] == 3
    assert row["units"] == {"web_search": 3}
    prices = price_row(MODELS[dialect])["usd_per_million"]
    assert prices["web_search"] == "10000"  # $10 per 1,000
    assert row["cost_nano"] == due_nano(units, prices)
    without = {name: count for name, count in units.items() if name != "web_search"}
    assert row["cost_nano"] - due_nano(without, prices) == 30_000_000


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_the_tier_in_which_an_answer_was_made_is_what_counts(program, dialect, stream):
    """As asked for, and as the answer tells when that is another one."""
    row = price_row("gpt-5-mini")
    for asked, told, tier in (
        ("flex", "", "flex"),
        ("priority", "", "priority"),
        ("priority", "sim:tier default", ""),
        ("auto", "sim:tier priority", "priority"),
        (None, "", ""),
    ):
        more = {"service_tier": asked} if asked else {}
        text = f"{told} say hello"
        found, units = served(program, dialect, stream=stream, text=text, **more)
        prices = row["usd_per_million"] | row["tiers"].get(tier, {})
        assert found["cost_nano"] == due_nano(units, prices), (asked, told)
        assert tier_of(program, found["request_id"]) == tier


def test_the_hold_covers_the_dearest_tier_that_a_body_can_trigger(program):
    def estimate(**more) -> int:
        key = program.new_key()
        reply = post(program, "chat", key, stream=False, model="gpt-5-mini", **more)
        reply.body()
        return int(reply.header("x-estimated-credits"))

    plain = estimate()
    assert abs(estimate(service_tier="priority") - 2 * plain) <= 60  # its body is a little longer
    assert abs(estimate(service_tier="flex") - plain) <= 60  # the provider may decline it


def test_a_long_input_makes_the_whole_request_dearer(program):
    """Above 200,000 tokens, of which most come from the cache."""
    model, row = "claude-sonnet-4-5", price_row("claude-sonnet-4-5")
    key = program.new_key()
    held = {}
    for size in (780_000, 820_000):
        before = program.sim.last_id()
        reply = post(
            program,
            "anthropic",
            key,
            stream=False,
            model=model,
            system=[{"type": "text", "text": "x" * size, "cache_control": {"type": "ephemeral"}}],
        )
        reply.body()
        held[size] = int(reply.header("x-estimated-credits"))
        found = program.wait_for_row(reply.header("x-tollgate-request-id"), key)
        (call,) = program.sim.wait_for_calls(1, after=before)
        units = call["units"]
        assert units["cache_write_5m"] > 190_000
        long = sum(n for name, n in units.items() if name != "output") > 200_000
        assert long == (size == 820_000)
        prices = row["usd_per_million"] | (row["tiers"]["long"] if long else {})
        assert found["cost_nano"] == due_nano(units, prices)
        assert found["cost_nano"] <= held[size] * 1000


# -- more than was held --------------------------------------------------------------------------


def test_what_a_provider_takes_beyond_the_holds_is_written_off_and_told(program):
    """Every tenth answer costs three times its hold; 40 requests race for a small wallet."""
    wallet_nano = 12_000_000
    account = program.new_account("0.012")
    key, before = program.new_key("over", account=account), program.sim.last_id()
    metrics = written_off_metric(program)

    def one(number: int) -> int:
        reply = post(program, "anthropic", key, stream=number % 2 == 0, max_tokens=500)
        reply.body()
        return reply.status

    with ThreadPoolExecutor(6) as clients:
        statuses = list(clients.map(one, range(40)))
    assert set(statuses) <= {200, 402}
    rows = program.wait_for_rows(len(statuses), key)
    billed = [row for row in rows if row["outcome"] in ("completed", "budget_cut")]
    charged = sum(row["cost_nano"] for row in rows)
    assert charged <= wallet_nano, "no limit is passed"
    sums = program.sql(
        "SELECT sum(cost_nano) AS charged, sum(written_off_nano) AS written_off FROM requests "
        f"WHERE account_id = '{account}'"
    )[0]
    assert int(sums["charged"]) == charged
    written_off = int(sums["written_off"])
    assert written_off > 0
    if all(row["outcome"] == "completed" for row in billed):
        units = [call["units"] for call in program.sim.calls(after=before) if call["units"]]
        prices = price_row("claude-haiku-4-5")["usd_per_million"]
        assert charged + written_off == sum(due_nano(each, prices) for each in units)
    margin = json.loads(program.cli("price", "margin", "--json").stdout)
    (line,) = [each for each in margin["lines"] if each["channel"] == "over-anthropic"]
    assert line["written_off_nano"] >= written_off
    assert line["margin_nano"] < 0
    assert any("haiku" in each and "lost" in each for each in margin["warnings"])
    wait_until(lambda: written_off_metric(program) - metrics >= written_off)


def written_off_metric(program) -> int:
    with urllib.request.urlopen(f"{program.base_url}/metrics", timeout=10) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return sum(
        int(sample.value)
        for family in families
        for sample in family.samples
        if sample.name == "tollgate_written_off_nano_total"
    )


def test_a_key_that_costs_more_than_a_dollar_holds_whole_bounds_for_the_day(program):
    account = program.new_account("0.7")
    key, other = (program.new_key("over", account=account) for _ in range(2))
    books = program._open_books()
    opus = {"model": "claude-opus-4-5", "text": "sim:words 3"}

    def hold_nano(secret: str) -> tuple[int, int]:
        """(what a stream held, its whole bound)"""
        reply = post(program, "anthropic", secret, stream=True, max_tokens=8_000, **opus)
        reply.body()
        assert reply.status == 200
        request_id = reply.header("x-tollgate-request-id")
        program.wait_for_row(request_id, secret)
        found = program.sql(f"SELECT hold_nano FROM requests WHERE request_id = '{request_id}'")
        return int(found[0]["hold_nano"]), int(reply.header("x-estimated-credits")) * 1000

    for _ in range(20):  # $0.60 are held; the tenth answer costs $1.80
        reply = post(program, "anthropic", key, stream=False, max_tokens=8_000, **opus)
        reply.body()
        if reply.status == 402:
            break
    assert reply.status == 402, "the wallet is used up"
    written_off = program.sql(
        f"SELECT sum(written_off_nano) AS w FROM requests WHERE account_id = '{account}'"
    )
    wait_until(
        lambda: (
            int(
                program.sql(
                    "SELECT sum(written_off_nano) AS w FROM requests "
                    f"WHERE account_id = '{account}'"
                )[0]["w"]
            )
            > USD
        ),
        told=lambda: written_off,
    )
    books.wallets.move(account, "topup", 20 * USD, "", "test")
    elastic, whole = hold_nano(other)
    assert elastic < whole / 2
    full, whole = hold_nano(key)
    assert whole - 1000 < full <= whole
