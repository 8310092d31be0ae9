"""What a period's usage would cost under other prices, and what it earned."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from schemas.events import Error, Usage
from services.core.prices import PPM, Overrides, PriceBook
from services.core.rating import Unpriced, class_prices, provider_prices, rate
from services.core.tiers import price_of, rate_of


class WhatIf(msgspec.Struct):
    """Of one model: what was due, and what would be. `unpriced` requests use something that the
    other prices do not name; they count in neither sum."""

    model: str
    requests: int = 0
    now_nano: int = 0
    then_nano: int = 0
    unpriced: int = 0


class Margin(msgspec.Struct):
    """Of one model on one channel: `charged_nano` came from wallets, `provider_cost_nano` is what
    the provider charges us, also for answers that were free."""

    model: str
    channel: str
    requests: int = 0
    free: int = 0
    charged_nano: int = 0
    written_off_nano: int = 0
    provider_cost_nano: int = 0

    @property
    def margin_nano(self) -> int:
        return self.charged_nano - self.provider_cost_nano


class BelowCost(NamedTuple):
    """A price below what the provider charges, per 10^6 units; `channel` empty: the model's own.
    `usage_class` is a key of a price set."""

    group: str
    model: str
    channel: str
    usage_class: str
    customer_nano: int
    provider_nano: int


class PriceStudy:
    """Takes events one by one. `other`: the prices of models and channels to be tried; all else of
    an event's own book stays."""

    def __init__(self, other: Overrides) -> None:
        self._other = other
        self._books: dict[str, PriceBook] = {}
        self.models: dict[str, WhatIf] = {}

    def add(self, event: Usage, book: PriceBook) -> None:
        """`book` is the content of the event's price version."""
        line = self.models.setdefault(event.priced_as, WhatIf(event.priced_as))
        tried = self._books.get(event.price_version)
        if tried is None:
            tried = book.with_own(self._other)
            self._books[event.price_version] = tried
        line.requests += 1
        try:
            rated = rate(
                tried,
                channel=event.channel,
                priced_as=event.priced_as,
                group=event.group,
                usage=event.usage,
                tier=event.tier,
            )
        except Unpriced:
            line.unpriced += 1
            return
        line.now_nano += event.cost_nano
        line.then_nano += rated.cost_nano


class Margins:
    """Takes terminals one by one."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], Margin] = {}

    def add(self, event: Usage | Error) -> None:
        model = event.priced_as or event.model
        line = self.lines.setdefault((model, event.channel), Margin(model, event.channel))
        line.requests += 1
        line.provider_cost_nano += event.provider_cost_nano
        if isinstance(event, Usage):
            line.charged_nano += event.charged_nano
            line.written_off_nano += event.written_off_nano
        else:
            line.free += 1


def below_cost(book: PriceBook) -> Iterator[BelowCost]:
    """Every price of the book that loses money on each unit sold. What only the provider prices
    otherwise (a tier that customers pay the plain price for) counts too."""
    for group, multiplier_ppm in sorted(book.multipliers_ppm.items()):
        for name in sorted(book.models):
            own = {
                c for part in (book.channels, book.channel_costs) for c in part if name in part[c]
            }
            for channel in ("", *sorted(own)):
                prices = class_prices(book, channel, name)
                costs = provider_prices(book, channel, name)
                for key in sorted({*prices, *costs}):
                    sold_nano = (price_of(prices, *rate_of(key)) or 0) * multiplier_ppm // PPM
                    cost_nano = price_of(costs, *rate_of(key)) or 0
                    if sold_nano < cost_nano:
                        yield BelowCost(group, name, channel, key, sold_nano, cost_nano)
