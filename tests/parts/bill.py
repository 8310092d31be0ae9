"""Compares the product's rows with what the provider says it would have charged."""

from collections import Counter
from decimal import ROUND_HALF_UP, Decimal

# a usage row's fields for the provider's classes
FIELDS = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write_5m": "cache_write_5m_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
}


def charged_nano(call: dict) -> int:
    """What the provider's log says one call costs, rounded once, half up."""
    assert call["charge_usd"] is not None, f"the provider has no price for {call['model']}"
    total = Decimal(call["charge_usd"]["total"]) * 10**9
    return int(total.to_integral_value(ROUND_HALF_UP))


def assert_bill_matches(rows: list[dict], calls: list[dict]) -> None:
    """The billed rows and the finished calls are the same, one by one, in units and money."""
    billed = Counter(
        (tuple(row[f] for f in FIELDS.values()), row["cost_nano"])
        for row in rows
        if row["outcome"] == "completed"
    )
    served = Counter(
        (tuple(call["units"].get(c, 0) for c in FIELDS), charged_nano(call))
        for call in calls
        if call["status"] == 200 and call["finish"] and not call["path"].count("count_tokens")
    )
    assert billed == served
    assert all(row["cost_nano"] == 0 for row in rows if row["outcome"] in ("failed", "refused"))
