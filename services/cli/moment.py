"""Times as options take them."""

from datetime import UTC, datetime

import click


def moment_us(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A click callback: an ISO 8601 time (UTC unless it says otherwise) as microseconds."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as ex:
        raise click.BadParameter("write a time such as 2026-05-01T00:00:00Z") from ex
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000_000)
