"""All that the parts hold after a run, read from each of them without the program's own checks."""

import contextlib
import json
from collections import defaultdict
from typing import NamedTuple

from sqlalchemy import Engine, select

from schemas.events import TOPIC, AnyEvent, decode
from services.backends.outbox_files import list_incarnations
from services.backends.settings import under
from services.backends.sql import tables
from services.backends.sql.engine import read
from services.meter.bootstrap import open_bus
from tests.chaos.installation import Installation

PAGE = 4000
COLUMNS = (
    "event_id, request_id, account_id, key_id, session_id, outcome, status, error_code, model, "
    "input_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens, "
    "cache_write_1h_tokens, cost_nano, written_off_nano, provider_cost_nano, hold_nano, "
    "estimated, upstream_request_id, toUnixTimestamp(toStartOfHour(occurred_at)) AS hour"
)


class Log(NamedTuple):
    """`events`: the first copy of every event, by id; `copies`: how many there are;
    `changed`: ids under which there are different bytes."""

    events: dict[str, AnyEvent]
    copies: int
    changed: list[str]


def read_log(program: Installation) -> Log:
    first: dict[str, bytes] = {}
    copies, changed = 0, []
    with contextlib.closing(open_bus(program.config)) as bus:
        for partition, (start, end) in bus.bounds(TOPIC).items():
            if start == end:
                continue
            for message in bus.read(TOPIC, partition, start, end - 1):
                copies += 1
                event_id = decode(message.value).event_id
                if first.setdefault(event_id, message.value) != message.value:
                    changed.append(event_id)
    return Log({name: decode(body) for name, body in first.items()}, copies, changed)


def read_outboxes(program: Installation) -> list[str]:
    """The ids of the events that still lie in outbox files."""
    folder = under(program.config, program.config.outbox.path)
    return [
        decode(row.body).event_id
        for files in list_incarnations(folder)
        for row in files.scan(0, files.synced_seq())
    ]


def read_calls(program: Installation) -> dict[str, list[dict]]:
    """The provider's calls by the session that asked, from its log on disk."""
    calls: dict[str, list[dict]] = defaultdict(list)
    for line in program.sim.log_path.read_bytes().splitlines():
        call = json.loads(line)
        if call.get("session"):
            calls[call["session"]].append(call)
    return calls


def read_rows(program: Installation) -> list[dict]:
    """Every row of ClickHouse, merged."""
    rows: list[dict] = []
    after = ""
    while True:
        page = program.rows(
            f"SELECT {COLUMNS} FROM requests FINAL WHERE event_id > '{after}' "
            f"ORDER BY event_id LIMIT {PAGE}"
        )
        for row in page:
            rows.append({name: _number(name, value) for name, value in row.items()})
        if len(page) < PAGE:
            return rows
        after = page[-1]["event_id"]


def _number(name: str, value):
    return int(value) if name.endswith(("_nano", "_tokens", "hour", "status")) else value


class Books(NamedTuple):
    """Rows of the ledger, as dictionaries."""

    applied: list[dict]
    dead: list[dict]
    settlements: list[dict]
    postings: list[dict]
    balances: list[dict]
    limits: list[dict]
    leases: list[dict]
    movements: list[dict]
    incarnations: list[dict]


def read_books(engine: Engine) -> Books:
    wanted = (
        tables.applied,
        tables.dead_event,
        tables.settlement,
        tables.posting,
        tables.balance,
        tables.limit_row,
        tables.lease,
        tables.wallet_movement,
        tables.incarnation,
    )

    def fn(connection) -> Books:
        return Books(
            *([dict(row) for row in connection.execute(select(t)).mappings()] for t in wanted)
        )

    return read(engine, fn)
