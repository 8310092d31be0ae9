"""Prices that depend on how a request was served: in a service tier, or with a long input.

A price set maps usage classes to nano-USD per 10^6 units. Beside the plain class (`output`) it may
name the class in a tier (`flex:output`), above the model's long-context threshold (`long:output`),
and in a tier above it (`flex+long:output`). What a tier does not name costs the plain price; a
long input makes the whole request dearer, never cheaper, and tier and length are never multiplied.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from services.core.usage import INPUT

LONG: Final = "long"
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_STANDARD: Final = frozenset({"default", "standard", "standard_only", "on_demand"})


class Rate(NamedTuple):
    """One price of a set: what it is for."""

    usage_class: str
    tier: str = ""
    long: bool = False

    @property
    def key(self) -> str:
        """How a price set names it."""
        served = "+".join(word for word in (self.tier, LONG if self.long else "") if word)
        return f"{served}:{self.usage_class}" if served else self.usage_class


def rate_of(key: str) -> Rate:
    """What a key of a price set is for."""
    served, _, usage_class = key.rpartition(":")
    tier, _, long = served.rpartition("+") if "+" in served else (served, "", "")
    if tier == LONG:
        return Rate(usage_class, "", True)
    return Rate(usage_class, tier, long == LONG)


def is_tier(name: str) -> bool:
    """Whether a service tier may be called so."""
    return name != LONG and _NAME.fullmatch(name) is not None


def told_tier(value: object) -> str | None:
    """The tier that a request asks for or an answer tells: empty for the standard one, None when
    it is left open (`auto`) or cannot be read."""
    if type(value) is not str or value == "auto" or not is_tier(value):
        return None
    return "" if value in _STANDARD else value


def is_long(usage: Mapping[str, int], threshold_tokens: int) -> bool:
    """Whether the input, cached or not, is above the threshold (0: there is none)."""
    return 0 < threshold_tokens < sum(usage.get(name, 0) for name in INPUT)


def price_of(prices: Mapping[str, int], usage_class: str, tier: str, long: bool) -> int | None:
    """Nano-USD per 10^6 units of the class so served; None when it has no price at all."""
    price = prices.get(usage_class)
    if tier:
        price = prices.get(f"{tier}:{usage_class}", price)
    if not long:
        return price
    longer = prices.get(f"{tier}+{LONG}:{usage_class}") if tier else None
    if longer is None:
        longer = prices.get(f"{LONG}:{usage_class}", price)
    return longer if price is None or longer is None else max(price, longer)


def served_prices(
    prices: Mapping[str, int], classes: Iterable[str], tier: str, long: bool
) -> Mapping[str, int]:
    """The prices of `classes` so served, those without one left out."""
    if not tier and not long:
        return prices
    found = ((name, price_of(prices, name, tier, long)) for name in classes)
    return {name: price for name, price in found if price is not None}
