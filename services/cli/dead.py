"""`tollgate dead`: events that the books refused."""

import contextlib
from typing import Any

import click
from sqlalchemy import Engine

from services.backends import settings
from services.backends.sql.dead_events import (
    DEAD,
    DeadEvent,
    DeadEvents,
    NoSuchDeadEvent,
)
from services.cli.bootstrap import open_database
from services.cli.context import Cli, Group, iso, table
from services.core.money import exact_usd
from services.core.texts import one_line
from services.meter import relay_dead
from services.meter.bootstrap import entry_reader, open_bus
from services.meter.dead import Reason
from services.meter.dead_repair import AlreadyClosed, DeadRepair, StillDead
from services.meter.relay_dead import CHECKSUM, TOO_LARGE, NotSendable, RelayDead

_COLUMNS = ("id", "state", "reason", "event_id", "account_id", "place", "dead_at", "held_usd")
_DIGITS_MAX = 18
_RELAY = "relay-"  # the numbers of what the relay could not send
_REASONS = [*(each.value for each in Reason), CHECKSUM, TOO_LARGE]
_reason = click.option("--reason", type=click.Choice(_REASONS))


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
    """Lists them in the order of arrival, then what this host's relay could not send."""
    engine = open_database(cli.config())
    found = DeadEvents(engine).listed(
        state="" if state == "any" else state, reason=reason or "", after=after, limit=limit
    )
    rows = [_shown(each) for each in found]
    unsent = [_shown_unsent(each) for each in _unsent(cli, engine)]
    rows += [
        row for row in unsent if state in ("any", row["state"]) and reason in (None, row["reason"])
    ][: limit - len(rows)]
    cli.show(rows, table(_COLUMNS, [[row[name] for name in _COLUMNS] for row in rows]))


@dead.command("show")
@click.argument("number")
@click.pass_obj
def show(cli: Cli, number: str) -> None:
    """Shows one with its detail and its bytes."""
    engine = open_database(cli.config())
    if number.startswith(_RELAY):
        row = _shown_unsent(_one_unsent(cli, engine, number))
    else:
        row = _shown(DeadEvents(engine).get(_number(number)))
    lines = [f"{name:<11} {one_line(str(value))}" for name, value in row.items()]
    cli.show(row, "\n".join(lines))


@dead.command("replay")
@click.argument("numbers", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that are dead.")
@_reason
@click.pass_obj
def replay(cli: Cli, numbers: tuple[str, ...], everything: bool, reason: str | None) -> None:
    """Books events after their cause was fixed (a missing price version imported, an account
    made), each once; sends what was too large for the bus. Exit code 1 when one is still dead."""
    config = cli.config()
    engine = open_database(config)
    repair = DeadRepair(engine, lambda: entry_reader(engine, config))
    results = []
    for number in _chosen(cli, engine, numbers, everything, reason):
        try:
            if number.startswith(_RELAY):
                with contextlib.closing(open_bus(config)) as bus:
                    again = relay_dead.send(bus, _one_unsent(cli, engine, number))
                done = "sent" if again else "sent before"
            else:
                done = "replayed" if repair.replay(_number(number)) else "replayed before"
        except (StillDead, AlreadyClosed, NotSendable) as ex:
            done = f"refused: {ex}"
        results.append({"id": number, "result": done})
    _tell(cli, results)


@dead.command("dismiss")
@click.argument("numbers", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that are dead.")
@_reason
@click.option("--note", default="", help="Why; kept in the audit event.")
@click.pass_obj
def dismiss(
    cli: Cli, numbers: tuple[str, ...], everything: bool, reason: str | None, note: str
) -> None:
    """Gives events up: nobody is charged, what they kept on hold returns."""
    config = cli.config()
    engine = open_database(config)
    repair = DeadRepair(engine, lambda: entry_reader(engine, config))
    results = []
    folder = settings.under(config, config.outbox.path)
    for number in _chosen(cli, engine, numbers, everything, reason):
        try:
            if number.startswith(_RELAY):
                lost = _one_unsent(cli, engine, number)
                with contextlib.closing(open_bus(config)) as bus:
                    first = relay_dead.dismiss(bus, engine, folder, lost, note)
            else:
                first = repair.dismiss(_number(number), note=note)
            done = "dismissed" if first else "dismissed before"
        except (AlreadyClosed, NotSendable) as ex:
            done = f"refused: {ex}"
        results.append({"id": number, "result": done})
    _tell(cli, results)


def _chosen(
    cli: Cli, engine: Engine, numbers: tuple[str, ...], everything: bool, reason: str | None
) -> list[str]:
    if numbers and not everything and reason is None:
        return list(numbers)
    if numbers or not (everything or reason):
        raise click.UsageError("give numbers, or --all, or --reason")
    found = DeadEvents(engine).numbers(state=DEAD, reason=reason or "")
    unsent = [
        f"{_RELAY}{each.id}"
        for each in _unsent(cli, engine)
        if each.state == DEAD and reason in (None, each.reason)
    ]
    return [str(each) for each in found] + unsent


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > _DIGITS_MAX:
        raise click.UsageError(f"no number of a dead event: {text!r}")
    return int(text)


def _unsent(cli: Cli, engine: Engine) -> list[RelayDead]:
    config = cli.config()
    return relay_dead.listed(settings.under(config, config.outbox.path), engine)


def _one_unsent(cli: Cli, engine: Engine, number: str) -> RelayDead:
    for each in _unsent(cli, engine):
        if f"{_RELAY}{each.id}" == number:
            return each
    raise NoSuchDeadEvent(f"the relay of this host has set nothing aside as {number}")


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
        "held_usd": exact_usd(event.held_nano),
        "detail": event.detail,
        "body": event.body.decode("utf-8", "backslashreplace"),
    }


def _shown_unsent(dead: RelayDead) -> dict[str, Any]:
    return {
        "id": f"{_RELAY}{dead.id}",
        "state": dead.state,
        "reason": dead.reason,
        "event_id": dead.event_id,
        "account_id": dead.account_id,
        "place": f"outbox/{dead.incarnation}/{dead.seq}",
        "dead_at": iso(dead.dead_at),
        "held_usd": None,
        "detail": "",
        "body": dead.body.decode("utf-8", "backslashreplace"),
    }
