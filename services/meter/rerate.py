"""Rates every billed event again from nothing but what the event names."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from schemas.events import Usage
from services.core.prices import PriceVersion
from services.core.rating import Unpriced, rate
from services.meter.dead import Poison, Reason

_CACHED: Final = 64


class Rerate:
    """`load` gives a price version by id, None when there is none; versions never change, so what
    it gave is kept (the 64 used last)."""

    def __init__(self, load: Callable[[str], PriceVersion | None]) -> None:
        self._load = load
        self._versions: OrderedDict[str, PriceVersion] = OrderedDict()

    def check(self, event: Usage) -> None:
        """Raises Poison unless the event's money follows from its usage and price version."""
        if event.charged_nano + event.written_off_nano != event.cost_nano:
            raise Poison(
                Reason.PRICE_MISMATCH,
                f"charged {event.charged_nano} + written off {event.written_off_nano} "
                f"!= cost {event.cost_nano}",
            )
        book = self._version(event.price_version).book
        try:
            rated = rate(
                book,
                channel=event.channel,
                priced_as=event.priced_as,
                group=event.group,
                usage=event.usage,
                tier=event.tier,
            )
        except Unpriced as ex:
            raise Poison(Reason.PRICE_MISMATCH, str(ex)) from ex
        told = (event.cost_nano, event.provider_cost_nano, event.multiplier_ppm)
        if told != (rated.cost_nano, rated.provider_cost_nano, rated.multiplier_ppm):
            raise Poison(
                Reason.PRICE_MISMATCH,
                f"cost, provider cost and multiplier are {told} in the event, "
                f"{(rated.cost_nano, rated.provider_cost_nano, rated.multiplier_ppm)} by "
                f"{event.price_version}",
            )

    def _version(self, version_id: str) -> PriceVersion:
        found = self._versions.get(version_id)
        if found is None:
            found = self._load(version_id)
            if found is None:
                raise Poison(Reason.UNKNOWN_PRICE_VERSION, version_id)
            self._versions[version_id] = found
            if len(self._versions) > _CACHED:
                self._versions.popitem(last=False)
        else:
            self._versions.move_to_end(version_id)
        return found
