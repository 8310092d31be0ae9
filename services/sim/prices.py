"""What a call would cost, from a price file: `{"MODEL": {"CLASS": USD per 1,000,000 units}}`."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Final

from services.sim.prompt import Answer, Prompt

Table = dict[str, dict[str, Decimal]]
_MILLION: Final = Decimal(1_000_000)


def load(path: str | None) -> Table:
    """The price table, exact; empty without a file. Prices may be numbers or decimal text."""
    raw = json.loads(Path(path).read_text(), parse_float=Decimal) if path else {}
    return {
        model: {name: Decimal(usd) for name, usd in classes.items()}
        for model, classes in raw.items()
    }


def units(prompt: Prompt, answer: Answer, output: int) -> dict[str, int]:
    """Units by billed class, zeros left out."""
    classes = {
        "input": prompt.input.uncached,
        "cache_read": prompt.input.cache_read,
        "cache_write_5m": prompt.input.cache_write_5m,
        "cache_write_1h": prompt.input.cache_write_1h,
        "output": output,
        "web_search": answer.searches,
    }
    return {name: n for name, n in classes.items() if n}


def charge(table: Table, model: str, spent: dict[str, int]) -> dict[str, str] | None:
    """USD by class and in `total`, as exact decimal text; None for a model without prices."""
    prices = table.get(model)
    if prices is None:
        return None
    cost = {name: prices.get(name, Decimal(0)) * n / _MILLION for name, n in spent.items()}
    cost["total"] = sum(cost.values(), Decimal(0))
    return {name: format(value, "f") for name, value in cost.items()}
