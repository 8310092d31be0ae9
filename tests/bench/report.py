"""A bench as Markdown and as a plot (SVG, written by hand: no library is worth it)."""

import math
from collections.abc import Iterable
from html import escape

from tests.bench.answers import CASES, Case
from tests.bench.results import Bench, Drained

_COLOURS = {
    "direct": "#9aa5b1",
    "nginx-plain": "#748ffc",
    "nginx-keepalive": "#4c6ef5",
    "tollgate": "#0ca678",
    "litellm": "#f59f00",
    "portkey": "#e8590c",
}


def markdown(bench: Bench) -> str:
    parts = [
        "# Bench\n",
        f"{bench.made_at}, {bench.machine['cpus']} CPUs ({bench.machine['cpu']}), wrk "
        f"{bench.machine['wrk']} and upstream on the same CPUs. {bench.rounds} interleaved rounds "
        f"of {bench.seconds:g} s; shown are the median and, in brackets, the least and the "
        "greatest. One worker each. Load average of the machine at the start: "
        f"{bench.machine['load']}. Made by `scripts/bench`.\n",
        _what_ran(bench),
        "## Answers per second\n",
        "![Answers per second of every gateway](answers.svg)\n",
        _rates(bench),
        "## Ratios\n",
        _ratios(bench),
        "## Added latency at one connection, ms over direct\n",
        _latencies(bench),
        "## CPU per answer, microseconds of the gateway's processes\n",
        _cpu(bench),
        "## Memory, MB\n",
        _memory(bench),
    ]
    if bench.streams:
        parts += ["## Open streams\n", _streams(bench)]
    if bench.bill is not None:
        parts += ["## Billed and served\n", _bill(bench)]
    if bench.drains:
        parts += ["## Draining a backlog\n", _drains(bench)]
    return "\n".join(parts)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *(list(row) for row in rows)]
    out = ["| " + " | ".join(lines[0]) + " |", "|" + " --- |" * len(lines[0])]
    out += ["| " + " | ".join(line) + " |" for line in lines[1:]]
    return "\n".join(out) + "\n"


def _what_ran(bench: Bench) -> str:
    rows = [
        (s.name, s.version or "-", s.settings, s.error or f"started in {s.start_s:.1f} s")
        for s in bench.subjects
    ]
    return _table(("gateway", "version", "settings", ""), rows)


def _grid(bench: Bench, cell, cases: list[Case] | None = None) -> str:
    names = [subject.name for subject in bench.measured()]
    chosen = bench.cases if cases is None else cases
    return _table(
        ("", *names), ([case.name, *(cell(name, case) for name in names)] for case in chosen)
    )


def _rates(bench: Bench) -> str:
    def cell(name: str, case: Case) -> str:
        rate = bench.rate(name, case)
        if rate is not None:
            return rate.text()
        runs = bench.of(name, case)
        bad = sum(run.load.not_ok for run in runs)
        return f"{bad:,} of {sum(run.load.answers for run in runs):,} answers failed"

    return _grid(bench, cell)


def _ratios(bench: Bench) -> str:
    names = [subject.name for subject in bench.measured()]
    if "tollgate" not in names:
        return "Tollgate was not measured.\n"
    if not bench.comparable:
        return "None: billed and served differ, see below.\n"
    others = [
        name for name in ("nginx-plain", "nginx-keepalive", "litellm", "portkey") if name in names
    ]

    def cell(other: str, case: Case) -> str:
        ratio = bench.ratio("tollgate", other, case)
        return ratio.text("{:,.3f}" if other.startswith("nginx") else "{:,.1f}") if ratio else "-"

    rows = ([case.name, *(cell(other, case) for other in others)] for case in bench.cases)
    return _table(("tollgate over", *others), rows)


def _latencies(bench: Bench) -> str:
    def cell(name: str, case: Case) -> str:
        p50, p99 = (bench.added_ms(name, case, each) for each in ("p50_ms", "p99_ms"))
        return f"p50 {p50.text('{:.2f}')}, p99 {p99.median:.2f}" if p50 and p99 else "-"

    return _grid(bench, cell, [case for case in bench.cases if case.connections == 1])


def _cpu(bench: Bench) -> str:
    def cell(name: str, case: Case) -> str:
        runs = [run for run in bench.of(name, case) if run.load.answers]
        if not runs or not any(run.cpu_us for run in runs):
            return "-"
        least = min(run.cpu_us for run in runs)
        behind = min(run.behind_cpu_us for run in runs)
        return f"{least:,.0f}" + (f" + {behind:,.0f} metering" if behind else "")

    return "Least of the rounds, because other work on the machine only adds.\n\n" + _grid(
        bench, cell
    )


def _memory(bench: Bench) -> str:
    rows = [
        (s.name, f"{s.idle_memory_mb:.0f}", f"{s.memory_mb:.0f}", f"{s.behind_memory_mb:.0f}")
        for s in bench.measured()
        if s.memory_mb
    ]
    return _table(("gateway", "request path, idle", "after the load", "books and analytics"), rows)


def _streams(bench: Bench) -> str:
    head = ("", "streams", "whole", "chunks", "p50", "p99", "p99.9", "max", "edge memory")
    rows = []
    for each in bench.streams:
        told = each.delays
        counts = (each.where, f"{told.streams:,}", f"{told.complete:,}", f"{told.chunks:,}")
        delays = (f"{ms:.2f}" for ms in (told.p50_ms, told.p99_ms, told.p999_ms, told.max_ms))
        memory = f"{each.memory_kb_each:.0f} KB each" if each.memory_kb_each else "-"
        rows.append((*counts, *delays, memory))
    return (
        "A delta each half second on every stream; milliseconds from the upstream's write to the "
        "client's read.\n\n" + _table(head, rows)
    )


def _bill(bench: Bench) -> str:
    bill = bench.bill
    assert bill is not None
    verdict = "equal" if bill.equal else "**DIFFERENT**"
    return (
        f"Answers the load generator received whole: {bill.served:,}. Usage events in the "
        f"ledger: {bill.billed:,}; free endings: {bill.free:,}; requests without an end: "
        f"{bill.unfinished:,}. {verdict}.\n\n"
        f"Money held at admission over money charged: p50 {bill.hold_ratio_p50:.1f}, p99 "
        f"{bill.hold_ratio_p99:.1f} (caps of 1,024 output tokens, answers of 80).\n"
    )


def _drains(bench: Bench) -> str:
    rows = [
        (
            drain.bus,
            f"{drain.events:,}",
            f"{drain.append_us:.0f}",
            *(_drained(role) for role in drain.roles),
        )
        for drain in bench.drains
    ]
    head = ("bus", "events", "append, us", *(role.role for role in bench.drains[0].roles))
    return (
        "Events per second, each role alone; in brackets the time for 300,000; then the CPU each "
        "process had meanwhile, in cores. SQLite where PostgreSQL is not named; ClickHouse is the "
        "embedded one, in the role's process.\n\n" + _table(head, rows)
    )


def _drained(role: Drained) -> str:
    cores = ", ".join(f"{name} {used / role.seconds:.2f}" for name, used in role.cpu_s.items())
    return f"{role.rate:,.0f} ({300_000 / role.rate:.0f} s); {cores}"


def plot(bench: Bench) -> str:
    """Answers per second of JSON and streams at 32 connections, on a logarithmic scale."""
    shown = [case for case in bench.cases if case.connections == 32] or list(CASES[:1])
    names = [subject.name for subject in bench.measured()]
    bar, gap, left, width = 14, 18, 190, 620
    height = 60 + len(shown) * (len(names) * bar + gap)
    peak = max((run.load.rate for run in bench.runs), default=1.0)
    decades = max(1, math.ceil(math.log10(peak)))

    def x(rate: float) -> float:
        return left + width * max(0.0, math.log10(max(rate, 1.0))) / decades

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="18" font-size="13">Answers per second, 32 connections, one worker each'
        " (median of the rounds, logarithmic)</text>",
    ]
    for decade in range(decades + 1):
        at = x(10**decade)
        out.append(f'<line x1="{at}" x2="{at}" y1="30" y2="{height - 24}" stroke="#e1e5ea"/>')
        out.append(f'<text x="{at}" y="{height - 10}" text-anchor="middle">{10**decade:,}</text>')
    y = 38
    for case in shown:
        label = escape(case.name.replace(" c=32", ""))
        middle = y + len(names) * bar / 2 + 4
        out.append(f'<text x="{left - 10}" y="{middle}" text-anchor="end">{label}</text>')
        for name in names:
            rate = bench.rate(name, case)
            if rate is not None:
                colour = _COLOURS.get(name, "#868e96")
                out.append(
                    f'<rect x="{left}" y="{y}" width="{x(rate.median) - left:.1f}" '
                    f'height="{bar - 3}" fill="{colour}"/>'
                )
            told = f"{name} {rate.median:,.0f}" if rate else f"{name}: errors"
            at = x(rate.median) if rate else left
            out.append(f'<text x="{at + 4:.1f}" y="{y + 9}">{escape(told)}</text>')
            y += bar
        y += gap
    out.append("</svg>")
    return "\n".join(out) + "\n"
