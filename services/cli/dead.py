"""`tollgate dead`: events that the books refused."""

from typing import Any

import click

from services.backends.sql.dead_events import DeadEvent, DeadEvents
from services.cli.context import Cli, Group, iso, table
from services.meter.bootstrap import entry_reader, open_database
from services.meter.dead import Reason
from services.meter.dead_repair import AlreadyClosed, DeadRepair, StillDead

_COLUMNS = ("id", "state", "reason", "event_id", "account_id", "place", "dead_at")
_ALL_AT_ONCE = 10_000
_reason = click.option("--reason", type=click.Choice([each.value for each in Reason]))


@click.group(cls=Group)
def dead() -> None:
    """Events that cannot be booked as they are. They keep their money on hold until replayed or
    dismissed."""


@dead.command("list")
@click.option(
    "--state", type=click.Choice(["dead", "replayed", "dismissed", "any"]), default="dead"
)
@_reason
@click.option("--after", type=int, default=0, help="Only with a number above this one.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.pass_obj
def list_(cli: Cli, state: str, reason: str | None, after: int, limit: int) -> None:
    """Lists them in the order of arrival."""
    found = DeadEvents(open_database(cli.config())).listed(
        state="" if state == "any" else state, reason=reason or "", after=after, limit=limit
    )
    rows = [_shown(each) for each in found]
    cli.show(rows, table(_COLUMNS, [[row[name] for name in _COLUMNS] for row in rows]))


@dead.command("show")
@click.argument("number", type=int)
@click.pass_obj
def show(cli: Cli, number: int) -> None:
    """Shows one with its detail and its bytes."""
    row = _shown(DeadEvents(open_database(cli.config())).get(number))
    cli.show(row, "\n".join(f"{name:<11} {value}" for name, value in row.items()))


@dead.command("replay")
@click.argument("numbers", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that are dead.")
@_reason
@click.pass_obj
def replay(cli: Cli, numbers: tuple[int, ...], everything: bool, reason: str | None) -> None:
    """Books events after their cause was fixed (a missing price version imported, an account
    made), each once. Exit code 1 when one is still dead."""
    config = cli.config()
    engine = open_database(config)
    repair = DeadRepair(engine, lambda: entry_reader(engine, config))
    results = []
    for number in _chosen(DeadEvents(engine), numbers, everything, reason):
        try:
            done = "replayed" if repair.replay(number) else "replayed before"
        except (StillDead, AlreadyClosed) as ex:
            done = f"refused: {ex}"
        results.append({"id": number, "result": done})
    _tell(cli, results)


@dead.command("dismiss")
@click.argument("numbers", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that are dead.")
@_reason
@click.option("--note", default="", help="Why; kept in the audit event.")
@click.pass_obj
def dismiss(
    cli: Cli, numbers: tuple[int, ...], everything: bool, reason: str | None, note: str
) -> None:
    """Gives events up: nobody is charged, what they kept on hold returns."""
    config = cli.config()
    engine = open_database(config)
    repair = DeadRepair(engine, lambda: entry_reader(engine, config))
    results = []
    for number in _chosen(DeadEvents(engine), numbers, everything, reason):
        try:
            done = "dismissed" if repair.dismiss(number, note=note) else "dismissed before"
        except AlreadyClosed as ex:
            done = f"refused: {ex}"
        results.append({"id": number, "result": done})
    _tell(cli, results)


def _chosen(
    events: DeadEvents, numbers: tuple[int, ...], everything: bool, reason: str | None
) -> list[int]:
    if numbers and not everything and reason is None:
        return list(numbers)
    if numbers or not (everything or reason):
        raise click.UsageError("give numbers, or --all, or --reason")
    found = events.listed(state="dead", reason=reason or "", limit=_ALL_AT_ONCE)
    return [each.id for each in found]


def _tell(cli: Cli, results: list[dict[str, Any]]) -> None:
    lines = [f"{each['id']}: {each['result']}" for each in results]
    cli.show(results, "\n".join(lines) or "(none)")
    if any(each["result"].startswith("refused") for each in results):
        raise click.exceptions.Exit(1)


def _shown(event: DeadEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "state": event.state,
        "reason": event.reason,
        "event_id": event.event_id,
        "account_id": event.account_id,
        "place": f"{event.topic}/{event.partition}/{event.offset}",
        "dead_at": iso(event.dead_at),
        "detail": event.detail,
        "body": event.body.decode("utf-8", "backslashreplace"),
    }
