"""What must hold after the chaos: G1 to G6, and the provider's truth. Each check writes what is
wrong into `problems`, naming event, request or limit."""

import re
import time
from collections import Counter, defaultdict

from schemas.errors import BILLED
from schemas.events import Error, IncarnationClosed, Request, Usage, WalletMovement
from tests.chaos.evidence import (
    Books,
    Log,
    read_books,
    read_calls,
    read_log,
    read_outboxes,
    read_rows,
)
from tests.chaos.installation import Installation
from tests.chaos.limits import LimitWatch
from tests.chaos.traffic import Seen, Traffic
from tests.parts.bill import FIELDS, charged_nano

SOUND_GROUPS = ("default", "slow-3", "over-error-503")
BILLED_WORDS = {each.value for each in BILLED}
REVOKED_S = 6.5  # one second, and `catalog_grace` of a worker that cannot read the catalog


class Checks:
    """`statuses`, `outcomes` and `figures` tell what happened."""

    def __init__(self, program: Installation, traffic: Traffic, watch: LimitWatch) -> None:
        self._program, self._traffic, self._watch = program, traffic, watch
        self.problems: list[str] = list(traffic.failures)
        self.statuses: Counter[str] = Counter(str(seen.status or "-") for seen in traffic.seen)
        self.outcomes: Counter[str] = Counter()
        self.figures: list[str] = []

    def run(self, wait_s: float) -> None:
        self._catch_up(wait_s)
        log = read_log(self._program)
        books = read_books(self._watch.engine)
        rows = read_rows(self._program)
        self.outcomes = Counter(row["outcome"] for row in rows)
        self._one_terminal(log)
        self._one_posting(log, books)
        self._balances(books)
        self._limits(books)
        self._same_events(log, books)
        self._same_sums(rows, books)
        self._provider(rows, log)
        self._figures(log, rows)

    def _wrong(self, what: str) -> None:
        self.problems.append(what)

    def _catch_up(self, wait_s: float) -> None:
        """Reconciliation says equal, and everything that was leased is back."""
        deadline = time.monotonic() + wait_s
        began = time.monotonic()
        while True:
            told = self._program.reconcile()
            books = read_books(self._watch.engine)
            left = sum(row["leased_nano"] for row in books.limits)
            open_leases = [row for row in books.leases if row["state"] != "closed"]
            if told.exit_code == 0 and not left and not open_leases:
                self.figures.append(f"caught up after {time.monotonic() - began:.1f} s")
                self.figures += [f"  {line}" for line in told.text().splitlines()]
                return
            if time.monotonic() > deadline:
                if told.exit_code:
                    self._wrong(f"reconcile: exit {told.exit_code}: {told.text()}")
                self.problems += [
                    f"lease {row['id']} of {row['incarnation_id']} is {row['state']}: "
                    f"{row['amount_nano'] - row['consumed_nano']} nano not returned, "
                    f"{row['events_applied']} of {row['events_total']} events"
                    for row in open_leases
                ]
                return
            time.sleep(0.5)

    def _one_terminal(self, log: Log) -> None:
        """G1: every durable request has exactly one terminal."""
        ends: Counter[str] = Counter()
        for event in log.events.values():
            if isinstance(event, Usage | Error):
                ends[event.request_id] += 1
        for event in log.events.values():
            if isinstance(event, Request) and not ends[event.request_id]:
                self._wrong(f"G1: {event.request_id} has no terminal")
        for request_id, count in ends.items():
            if count > 1:
                self._wrong(f"G1: {request_id} has {count} terminals")

    def _one_posting(self, log: Log, books: Books) -> None:
        """G2: each billed request was charged to its wallet once, each free one never."""
        wallets: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for row in books.postings:
            if row["ledger_account"].startswith("wallet:"):
                wallets[row["event_id"]].append((row["ledger_account"], row["amount_nano"]))
        for name, event in log.events.items():
            wanted: list[tuple[str, int]] = []
            if isinstance(event, Usage) and event.charged_nano:
                wanted = [(f"wallet:{event.account_id}", -event.charged_nano)]
            elif isinstance(event, WalletMovement):
                wanted = [(f"wallet:{event.account_id}", event.amount_nano)]
            if wallets.pop(name, []) != wanted:
                self._wrong(f"G2: {name} posted otherwise than {wanted}")
        for name in wallets:
            self._wrong(f"G2: {name} is posted, but not in the log")
        settled = Counter(row["request_id"] for row in books.settlements)
        self.problems += [f"G2: {name} settled {n} times" for name, n in settled.items() if n > 1]

    def _balances(self, books: Books) -> None:
        """G3: the trial balance is 0, and every balance the sum of its postings."""
        sums: Counter[str] = Counter()
        by_event: Counter[str] = Counter()
        for row in books.postings:
            sums[row["ledger_account"]] += row["amount_nano"]
            by_event[row["event_id"]] += row["amount_nano"]
        if sum(sums.values()):
            self._wrong(f"G3: the trial balance is {sum(sums.values())}")
        self.problems += [f"G3: {name} sums to {n}" for name, n in by_event.items() if n]
        for row in books.balances:
            if sums[row["ledger_account"]] != row["amount_nano"]:
                self._wrong(f"G3: balance of {row['ledger_account']}: {row['amount_nano']}")

    def _limits(self, books: Books) -> None:
        """G4: no limit was passed at any look, and none by what was charged in the end."""
        self.problems += [f"G4: {told}" for told in self._watch.passed.values()]
        charged: Counter[str] = Counter()
        for row in books.settlements:
            charged[row["account_id"]] += row["charged_nano"]
            charged[row["key_id"]] += row["charged_nano"]
        paid: Counter[str] = Counter()
        for row in books.movements:
            paid[row["account_id"]] += row["amount_nano"]
        for row in books.limits:
            subject, limit = row["subject"], row["limit_nano"]
            if row["kind"] == "wallet" and limit != paid[subject]:
                self._wrong(f"G4: {subject} has {limit}, paid in {paid[subject]}")
            if limit is not None and charged[subject] > limit:
                self._wrong(f"G4: {subject} was charged {charged[subject]} of {limit}")

    def _same_events(self, log: Log, books: Books) -> None:
        """G5: what the outboxes held is in the log, dense; the log is what was applied or died."""
        self.problems += [f"G5: {name} has two bodies" for name in log.changed]
        taken = {row["event_id"] for row in books.applied}
        self.problems += [f"G5: {name} not applied" for name in log.events.keys() - taken]
        self.problems += [f"G5: {name} applied, not in the log" for name in taken - set(log.events)]
        self.problems += [f"dead: {row['event_id']}: {row['detail']}" for row in books.dead]
        for name in set(read_outboxes(self._program)) - set(log.events):
            self._wrong(f"G5: {name} in an outbox, not in the log")
        seqs: dict[str, set[int]] = defaultdict(set)
        last: dict[str, int] = {}
        for event in log.events.values():
            if event.incarnation:
                seqs[event.incarnation].add(event.seq)
            if isinstance(event, IncarnationClosed):
                last[event.incarnation] = event.seq
        for incarnation, found in seqs.items():
            if incarnation not in last:
                self._wrong(f"G5: {incarnation} was never closed")
            elif found != set(range(1, last[incarnation] + 1)):
                gaps = sorted(set(range(1, last[incarnation] + 1)) ^ found)[:5]
                self._wrong(f"G5: {incarnation} ends at {last[incarnation]}, wrong: {gaps}")

    def _same_sums(self, rows: list[dict], books: Books) -> None:
        """G6: ClickHouse and ledger tell the same per account and hour; so does the roll-up."""
        stored: Counter[tuple[str, int, str]] = Counter()
        for row in rows:
            place = (row["account_id"], row["hour"])
            stored[(*place, "requests")] += 1
            stored[(*place, "nano")] += row["cost_nano"]
        booked: Counter[tuple[str, int, str]] = Counter()
        for row in books.settlements:
            place = (row["account_id"], row["occurred_at"] // 3_600_000_000 * 3600)
            booked[(*place, "requests")] += 1
            booked[(*place, "nano")] += row["charged_nano"]
        rolled: Counter[tuple[str, int, str]] = Counter()
        for row in self._program.rows(
            "SELECT account_id, toUnixTimestamp(hour) AS at, sum(requests) AS n, "
            "toString(sum(cost_nano)) AS nano FROM usage_hourly GROUP BY 1, 2"
        ):
            place = (row["account_id"], int(row["at"]))
            rolled[(*place, "requests")] += int(row["n"])
            rolled[(*place, "nano")] += int(row["nano"])
        for name, other in (("ledger", booked), ("roll-up", rolled)):
            for place in stored.keys() | other.keys():
                if stored[place] != other[place]:
                    self._wrong(f"G6: {place}: {stored[place]}, {name} {other[place]}")

    # -- the provider's truth and the clients' ------------------------------------------------

    def _provider(self, rows: list[dict], log: Log) -> None:
        calls = read_calls(self._program)
        intents = {e.session_id for e in log.events.values() if isinstance(e, Request)}
        self.problems += [f"{name}: called without a request" for name in set(calls) - intents]
        by_session: dict[str, list[dict]] = defaultdict(list)
        for row in rows:
            by_session[row["session_id"]].append(row)
        billed_calls: Counter[str] = Counter()
        for seen in self._traffic.seen:
            found = by_session.pop(seen.session, [])
            if len(found) > 1:
                self._wrong(f"{seen.session}: {len(found)} rows for one request")
            row = found[0] if found else None
            self._as_the_client_saw(seen, row)
            if row is not None:
                self._as_the_provider_says(row, calls.get(seen.session, []))
                if row["outcome"] in BILLED_WORDS:
                    billed_calls[row["upstream_request_id"]] += 1
        self.problems += [f"{name}: rows of nobody" for name in by_session]
        self.problems += [f"{name} billed {n} times" for name, n in billed_calls.items() if n > 1]

    def _as_the_client_saw(self, seen: Seen, row: dict | None) -> None:
        """A whole answer is billed; an error never, but for what was sent before the budget or the
        key of a stream was taken away; a client that lost its connection may be."""
        where = f"{seen.session} {seen.group} {seen.status}"
        cost_nano = row["cost_nano"] + row["written_off_nano"] if row else 0
        if row is not None and row["outcome"] not in BILLED_WORDS and cost_nano:
            self._wrong(f"{where}: {row['outcome']} cost {cost_nano}")
        if seen.whole and seen.group in SOUND_GROUPS and not cost_nano:
            self._wrong(f"{where}: a whole answer was not billed: {_short(row)}")
        if seen.error and cost_nano and row and row["outcome"] != "budget_cut":
            self._wrong(
                f"{where}: billed {cost_nano} although the client got an error: {_short(row)}"
            )
        gone_s = self._traffic.revoked.get(seen.key)
        if gone_s is not None and seen.began_s > gone_s + REVOKED_S and seen.status == 200:
            self._wrong(f"{where}: served {seen.began_s - gone_s:.1f} s after its revocation")

    def _as_the_provider_says(self, row: dict, calls: list[dict]) -> None:
        where = f"{row['request_id']} {row['outcome']}"
        if row["outcome"] not in BILLED_WORDS:
            return
        number = re.fullmatch(r"req_sim_(\d+)", row["upstream_request_id"])
        call = next((c for c in calls if number and c["id"] == int(number[1])), None)
        if call is None:
            self._wrong(f"{where}: billed without a call of the provider")
            return
        cost_nano = row["cost_nano"] + row["written_off_nano"]
        if row["outcome"] == "completed" and not row["estimated"]:
            units = {name: row[column] for name, column in FIELDS.items() if row[column]}
            told = {name: n for name, n in call["units"].items() if n}
            if units != told or cost_nano != charged_nano(call):
                self._wrong(f"{where}: {units} for {cost_nano}, the provider says {told}")
        elif cost_nano > row["hold_nano"]:
            self._wrong(f"{where}: estimated {cost_nano} over its hold of {row['hold_nano']}")

    def _figures(self, log: Log, rows: list[dict]) -> None:
        events = len(log.events)
        billed = [row for row in rows if row["outcome"] in BILLED_WORDS]
        charged = sum(row["cost_nano"] for row in rows)
        written_off = sum(row["written_off_nano"] for row in rows)
        free = sum(row["provider_cost_nano"] for row in rows if row["outcome"] not in BILLED_WORDS)
        self.figures += [
            f"{events} events, {log.copies - events} sent again; {len(rows)} rows, "
            f"{len(billed)} billed: ${charged / 1e9:.6f}, written off ${written_off / 1e9:.6f}, "
            f"free answers cost us ${free / 1e9:.6f}",
            f"{self._watch.looks} looks at the limits; {self._traffic.topped_up} top-ups, "
            f"{len(self._traffic.revoked)} keys revoked",
        ]


def _short(row: dict | None) -> str:
    if row is None:
        return "no row"
    names = ("request_id", "outcome", "status", "error_code", "cost_nano", "estimated")
    return ", ".join(f"{name} {row[name]}" for name in names)
