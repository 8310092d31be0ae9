"""What a delivered generation costs: the units that were delivered, at the job's own prices."""

from collections.abc import Mapping, Sequence

import msgspec

from services.backends.sql.job_ends import Bill
from services.backends.sql.job_records import Job, NewArtifact
from services.batch.parts import Parts
from services.core.rating import rate


def bill(
    parts: Parts, held: Job, delivered: Sequence[NewArtifact], told: Mapping[str, int]
) -> Bill:
    """At the price version that the job was submitted under, never more than its hold."""
    units = delivered_units(held, delivered, told)
    rated = rate(
        parts.views.book(held.price_version),
        channel=held.channel,
        priced_as=held.priced_as,
        group=held.group_name,
        usage=units,
    )
    return Bill(
        units,
        rated.cost_nano,
        min(rated.cost_nano, held.hold_nano),
        rated.provider_cost_nano,
        rated.multiplier_ppm,
    )


def delivered_units(
    held: Job, delivered: Sequence[NewArtifact], told: Mapping[str, int]
) -> dict[str, int]:
    """Units per class: images and seconds counted in what lies in our store, the rest as asked or,
    where only the provider can know (tokens, seconds of speech), as it told. At most what the hold
    covers."""
    bound = msgspec.json.decode(held.units, type=dict[str, int])
    units: dict[str, int] = {}
    for name, most in bound.items():
        if name.startswith("images"):
            count = sum(each.kind == "image" for each in delivered)
        elif name == "seconds" and held.kind == "video":
            count = max(1, (sum(each.duration_ms or 0 for each in delivered) + 500) // 1000)
        else:
            count = max(0, int(told.get(name, most)))  # what a provider tells may be anything
        if count:
            units[name] = min(count, most)
    return units


def expected_cost_nano(parts: Parts, held: Job) -> int:
    """What the provider may charge us for a generation that nobody pays for."""
    units = msgspec.json.decode(held.units, type=dict[str, int])
    rated = rate(
        parts.views.book(held.price_version),
        channel=held.channel,
        priced_as=held.priced_as,
        group=held.group_name,
        usage=units,
    )
    return rated.provider_cost_nano
