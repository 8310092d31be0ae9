"""What a usage costs: one formula, in integers, rounded once per event.

cost_nano = (sum(units * price) * multiplier_ppm + 5 * 10^11) // 10^12, with prices in nano-USD per
10^6 units (of the tier and input length that were used) and the multiplier in parts per million."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from services.core.prices import PPM, PriceBook
from services.core.tiers import is_long, served_prices
from services.core.usage import INFO

_SCALE: Final = 10**12  # 10^6 units per price, 10^6 parts per multiplier
_HALF: Final = _SCALE // 2


class Unpriced(Exception):
    """The price version has no price for something that was used: never free, never guessed."""


class Rated(NamedTuple):
    """`cost_nano` is what the customer owes, `provider_cost_nano` what the provider charges us."""

    cost_nano: int
    provider_cost_nano: int
    multiplier_ppm: int


def cost_nano(units: Mapping[str, int], prices: Mapping[str, int], multiplier_ppm: int) -> int:
    """Nano-USD for `units` per class. Classes that only inform (`reasoning`) are not priced.

    Raises `Unpriced` for a class with units and no price, ValueError for a count, price or
    multiplier that is no non-negative integer."""
    total = 0
    for name, count in units.items():
        _require_integer(count, name)
        if name in INFO or count == 0:
            continue
        price = prices.get(name)
        if price is None:
            raise Unpriced(f"no price for {name}")
        _require_integer(price, f"price of {name}")
        total += count * price
    _require_integer(multiplier_ppm, "multiplier_ppm")
    return (total * multiplier_ppm + _HALF) // _SCALE


def ceiling_nano(units: int, price: int, multiplier_ppm: int) -> int:
    """Nano-USD for `units` of one class, rounded up: the sum over classes is never below
    `cost_nano` of all of them."""
    return -(-units * price * multiplier_ppm // _SCALE)


def class_prices(book: PriceBook, channel: str, priced_as: str) -> dict[str, int]:
    """The price set (`services.core.tiers`) of `priced_as` on `channel`: each price that the
    channel names replaces exactly that one of the model.

    Raises `Unpriced` when the book does not hold the model."""
    model = book.models.get(priced_as)
    if model is None:
        raise Unpriced(f"no price for model {priced_as}")
    own = book.channels.get(channel, {}).get(priced_as)
    return {**model.classes, **own} if own else model.classes


def provider_prices(book: PriceBook, channel: str, priced_as: str) -> dict[str, int]:
    """What the provider behind `channel` charges us, as a price set: the list price of the model
    where nothing else is known. The book holds the model."""
    model = book.models[priced_as]
    own = book.channel_costs.get(channel, {}).get(priced_as)
    if not own and not model.provider_classes:
        return model.classes
    return {**model.classes, **model.provider_classes, **(own or {})}


def multiplier_ppm(book: PriceBook, group: str) -> int:
    """The group's multiplier. Raises `Unpriced` for a group that the book does not know."""
    if group not in book.multipliers_ppm:
        raise Unpriced(f"no multiplier for group {group}")
    return book.multipliers_ppm[group]


def rate(
    book: PriceBook,
    *,
    channel: str,
    priced_as: str,
    group: str,
    usage: Mapping[str, int],
    tier: str = "",
) -> Rated:
    """What `usage` of model `priced_as` costs on `channel`, served in `tier` (empty: the standard
    one), for a key of `group`.

    Raises `Unpriced` when book, model, group or a used class has no price."""
    prices = class_prices(book, channel, priced_as)
    multiplier = multiplier_ppm(book, group)
    long = is_long(usage, book.models[priced_as].long_context_tokens)
    costs = provider_prices(book, channel, priced_as)
    return Rated(
        cost_nano=cost_nano(usage, served_prices(prices, usage, tier, long), multiplier),
        provider_cost_nano=cost_nano(usage, served_prices(costs, usage, tier, long), PPM),
        multiplier_ppm=multiplier,
    )


def _require_integer(value: int, name: str) -> None:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} must be a non-negative integer: {value!r}")
