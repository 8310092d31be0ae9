"""Price versions in the database: bodies that never change, and which of them rules since when."""

from typing import Final, NamedTuple

import msgspec
from sqlalchemy import Connection, insert, select

from services.backends.sql.bulk import insert_new
from services.backends.sql.engine import now_us
from services.backends.sql.tables import price_override, price_schedule, price_version
from services.core.prices import ChannelPrice, ModelPrice, Overrides, PriceBook, PriceVersion

_COST: Final = "cost:"
_EMPTY = PriceBook(models={}, multipliers_ppm={})


class InForce(NamedTuple):
    """A version came into force at `effective_at` (microseconds). One may come again."""

    price_version_id: str
    effective_at: int


class PriceChange(NamedTuple):
    """One price that differs; `channel` empty: the model's own; None: there is no price.
    `usage_class` is a key of a price set; with `cost:` before it, of what the provider charges."""

    channel: str
    model: str
    usage_class: str
    old_nano: int | None
    new_nano: int | None


def current(connection: Connection) -> PriceVersion:
    """The version in force: the one that came last. Before the first: an empty book."""
    row = connection.execute(
        select(price_version.c.id, price_schedule.c.effective_at, price_version.c.body)
        .join(price_schedule, price_schedule.c.price_version_id == price_version.c.id)
        .order_by(price_schedule.c.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return PriceVersion(id=_EMPTY.version_id(), effective_at=0, book=_EMPTY)
    return PriceVersion(id=row.id, effective_at=row.effective_at, book=_book(row.body))


def load(connection: Connection, version_id: str) -> PriceVersion | None:
    """The version of that id, with the time at which it first came into force."""
    row = connection.execute(
        select(price_version.c.id, price_schedule.c.effective_at, price_version.c.body)
        .join(price_schedule, price_schedule.c.price_version_id == price_version.c.id)
        .where(price_version.c.id == version_id)
        .order_by(price_schedule.c.id)
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    return PriceVersion(id=row.id, effective_at=row.effective_at, book=_book(row.body))


def history(connection: Connection) -> list[InForce]:
    """Every coming into force, newest first."""
    rows = connection.execute(
        select(price_schedule.c.price_version_id, price_schedule.c.effective_at).order_by(
            price_schedule.c.id.desc()
        )
    )
    return [InForce(*row) for row in rows]


def put(connection: Connection, book: PriceBook, effective_at: int) -> tuple[PriceVersion, bool]:
    """The version of `book`, in force, and whether it is a change. A book that was in force
    before keeps its id and its body."""
    before = current(connection)
    version_id = book.version_id()
    if before.id == version_id and before.effective_at:
        return before, False
    body = msgspec.json.encode(book, order="deterministic").decode()
    row = {"id": version_id, "body": body, "created_at": now_us()}
    connection.execute(insert_new(connection, price_version).values(row))
    connection.execute(
        insert(price_schedule).values(price_version_id=version_id, effective_at=effective_at)
    )
    return PriceVersion(id=version_id, effective_at=effective_at, book=book), True


def overrides(connection: Connection) -> Overrides:
    """What the operator imported so far."""
    models: dict[str, ModelPrice] = {}
    channels: dict[str, dict[str, ChannelPrice]] = {}
    for row in connection.execute(select(price_override)):
        if row.channel:
            price = msgspec.json.decode(row.body, type=ChannelPrice)
            channels.setdefault(row.channel, {})[row.model] = price
        else:
            models[row.model] = msgspec.json.decode(row.body, type=ModelPrice)
    return Overrides(models=models, channels=channels)


def store_overrides(connection: Connection, own: Overrides) -> None:
    """Keeps what the operator imported; it rules over the built-in prices from now on."""
    bodies: dict[tuple[str, str], object] = {("", name): m for name, m in own.models.items()}
    for channel, by_model in own.channels.items():
        bodies |= {(channel, name): price for name, price in by_model.items()}
    for (channel, model), content in bodies.items():
        row = {"channel": channel, "model": model, "body": msgspec.json.encode(content).decode()}
        statement = (
            price_override.update()
            .where(price_override.c.channel == channel, price_override.c.model == model)
            .values(body=row["body"])
        )
        if not connection.execute(statement).rowcount:
            connection.execute(insert(price_override).values(row))


def diff(old: PriceBook, new: PriceBook) -> list[PriceChange]:
    """Every price that differs, models first, then channels, in alphabetical order."""
    before, after = _flat(old), _flat(new)
    return [
        PriceChange(*place, before.get(place), after.get(place))
        for place in sorted(before.keys() | after.keys())
        if before.get(place) != after.get(place)
    ]


def _flat(book: PriceBook) -> dict[tuple[str, str, str], int]:
    flat: dict[tuple[str, str, str], int] = {}

    def add(channel: str, model: str, prices: dict[str, int], word: str = "") -> None:
        flat.update({(channel, model, word + key): nano for key, nano in prices.items()})

    for name, price in book.models.items():
        add("", name, price.classes)
        add("", name, price.provider_classes, _COST)
    for word, part in (("", book.channels), (_COST, book.channel_costs)):
        for channel, by_model in part.items():
            for name, prices in by_model.items():
                add(channel, name, prices, word)
    return flat


def _book(body: str) -> PriceBook:
    return msgspec.json.decode(body, type=PriceBook)
