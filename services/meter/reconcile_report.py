"""What a reconciliation found, for people and for programs."""

from typing import Final

import msgspec

from services.core.money import exact_usd

EQUAL: Final = 0
DIFFERENT: Final = 1
NOT_CAUGHT_UP: Final = 2

_KEPT: Final = 200


class Difference(msgspec.Struct, frozen=True):
    """Two parts tell different things. `pair` names them (`bus-ledger`), `subject` is the event id
    or, for sums, the account or limit."""

    pair: str
    subject: str
    detail: str


class Totals(msgspec.Struct):
    """Of the requests that ended; money in nano-USD."""

    requests: int = 0
    charged_nano: int = 0
    written_off_nano: int = 0
    provider_cost_nano: int = 0

    def add(
        self, requests: int, charged_nano: int, written_off_nano: int, provider_cost_nano: int
    ) -> None:
        self.requests += requests
        self.charged_nano += charged_nano
        self.written_off_nano += written_off_nano
        self.provider_cost_nano += provider_cost_nano


class Report(msgspec.Struct):
    """`exit_code` 0: everything up to the watermark is equal, 1: different, 2: a part has not
    reached the watermark, and `lagging` names it. `set_aside` terminals are in the log alone:
    dead to the ledger, and so without a row in ClickHouse."""

    exit_code: int = EQUAL
    lagging: list[str] = []
    differences: list[Difference] = []
    more_differences: int = 0
    hour_differences: list[str] = []
    account_hours: int = 0
    log: Totals = msgspec.field(default_factory=Totals)
    ledger: Totals = msgspec.field(default_factory=Totals)
    clickhouse: Totals = msgspec.field(default_factory=Totals)
    set_aside: Totals = msgspec.field(default_factory=Totals)
    events: int = 0
    repeated: int = 0
    dead: int = 0
    in_flight: int = 0
    incarnations: int = 0
    trial_balance_nano: int = 0
    notes: list[str] = []

    def differ(self, pair: str, subject: str, detail: str) -> None:
        """Notes a difference; the first 200 by name, the others by number."""
        self.exit_code = DIFFERENT
        if len(self.differences) < _KEPT:
            self.differences.append(Difference(pair, subject, detail))
        else:
            self.more_differences += 1

    def differ_hour(self, detail: str) -> None:
        """Notes an account and hour whose sums differ; the first 200 are kept."""
        self.exit_code = DIFFERENT
        if len(self.hour_differences) < _KEPT:
            self.hour_differences.append(detail)

    def text(self) -> str:
        """A short table and the verdict."""
        if self.exit_code == NOT_CAUGHT_UP:
            return "\n".join(["not caught up:", *(f"  {each}" for each in self.lagging)])
        rows = [("", "requests", "charged USD", "written off", "provider cost")]
        for name in ("log", "ledger", "clickhouse", "set_aside"):
            totals: Totals = getattr(self, name)
            if name == "set_aside" and not totals.requests:
                continue
            rows.append(
                (
                    name.replace("_", " "),
                    f"{totals.requests:,}",
                    exact_usd(totals.charged_nano),
                    exact_usd(totals.written_off_nano),
                    exact_usd(totals.provider_cost_nano),
                )
            )
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines = []
        for name, *numbers in rows:
            cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *cells]))
        lines.append(
            f"{self.events:,} events of {self.incarnations:,} workers in {self.account_hours:,} "
            f"account-hours, {self.repeated:,} repeated "
            f"in the log, {self.dead:,} dead, {self.in_flight:,} requests in flight, trial balance "
            f"{self.trial_balance_nano}"
        )
        return "\n".join(lines + self.notes + self._verdict())

    def _verdict(self) -> list[str]:
        if self.exit_code == EQUAL:
            return ["equal"]
        lines = [f"account-hours that differ: {len(self.hour_differences)}"]
        lines += [f"  {each}" for each in self.hour_differences]
        lines += [f"different: {len(self.differences) + self.more_differences}"]
        lines += [f"  {d.pair}  {d.subject}  {d.detail}" for d in self.differences]
        if self.more_differences:
            lines.append(f"  ... and {self.more_differences} more")
        return lines
