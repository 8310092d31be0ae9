"""`scripts/bench`: Tollgate beside no gateway, nginx, LiteLLM and Portkey, on this machine.

Interleaved rounds in one run, so that what disturbs the machine disturbs all. No ratio is told
unless the ledger billed exactly the answers that the load generator received.
"""

import argparse
import datetime
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.bench import backlog, load, report, streams
from tests.bench.answers import CASES, QUICK_CASES, Case, request_body
from tests.bench.gateways import (
    CACHE,
    ROOT,
    Direct,
    Gateway,
    LiteLLM,
    NginxKeepalive,
    NginxPlain,
    Portkey,
    Unavailable,
    used,
)
from tests.bench.nginx import Nginx
from tests.bench.process import machine
from tests.bench.results import Bench, Bill, Run, Streams, Subject
from tests.bench.tollgate import Tollgate

WARM_UP_S = 0.5
STREAM_S = 20.0  # how long a slow stream lasts


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of every case (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run (default 2)")
    parser.add_argument("--quick", action="store_true", help="1 round of 1 s, three cases")
    parser.add_argument(
        "--only",
        default="direct,nginx-plain,nginx-keepalive,tollgate,litellm,portkey,streams,drain",
        help="comma-separated part of: %(default)s",
    )
    parser.add_argument("--streams", type=int, default=1000, help="open at once")
    parser.add_argument("--drain", type=int, default=300_000, help="events of the backlog")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench", help="folder")
    return parser.parse_args()


def main() -> int:
    asked = options()
    if asked.quick:
        asked.rounds, asked.seconds = 1, 1.0
    names = asked.only.split(",")
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
    bench = Bench(
        made_at=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=_machine(),
        rounds=asked.rounds,
        seconds=asked.seconds,
        subjects=[],
        cases=QUICK_CASES if asked.quick else CASES,
    )
    try:
        _measure(bench, folder, asked, names)
        if "drain" in names:
            _drain(bench, folder, asked.drain)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _write(bench, asked.out)
    if bench.bill is not None and not bench.bill.equal:
        print("bench: billed and served differ", file=sys.stderr)
        return 1
    return 0


def _machine() -> dict[str, str]:
    return {**machine(), "wrk": load.version()}


def _measure(bench: Bench, folder: Path, asked: argparse.Namespace, names: list[str]) -> None:
    upstream = Nginx(folder / "upstream")
    running: list[Gateway] = []
    try:
        with streams.slow_upstream(STREAM_S) as streams_port:
            tollgate = Tollgate(streams_port)
            for gateway in (
                Direct(),
                NginxPlain(),
                NginxKeepalive(),
                tollgate,
                LiteLLM(),
                Portkey(),
            ):
                if gateway.name in names:
                    subject = _start(gateway, folder, upstream.port)
                    bench.subjects.append(subject)
                    if not subject.error:
                        running.append(gateway)
            _rounds(bench, folder, running)
            _memory(bench, running)
            if tollgate in running:
                if "streams" in names and not asked.quick:
                    _streams(bench, tollgate, streams_port, asked.streams)
                bench.bill = _bill(bench, tollgate)
    finally:
        for gateway in running:
            gateway.stop()
        upstream.stop()


def _memory(bench: Bench, running: list[Gateway]) -> None:
    for gateway in running:
        subject = next(each for each in bench.subjects if each.name == gateway.name)
        after = used(gateway)
        subject.memory_mb = after["memory_mb"]
        subject.behind_memory_mb = after["behind_memory_mb"]


def _streams(bench: Bench, tollgate: Tollgate, direct_port: int, count: int) -> None:
    for where, port in (("direct", direct_port), ("tollgate", tollgate.port)):
        before = used(tollgate)["memory_mb"]
        client = streams.Client(port, streams.CASE.path, tollgate.key, count, STREAM_S)
        client.open()
        memory_kb = (used(tollgate)["memory_mb"] - before) * 1000 / count
        told = Streams(
            where, client.delays(), memory_kb_each=memory_kb if where == "tollgate" else 0.0
        )
        bench.streams.append(told)
        print(f"{count} streams, {where}: {told.delays}", flush=True)


def _start(gateway: Gateway, folder: Path, upstream_port: int) -> Subject:
    subject = Subject(name=gateway.name, settings=gateway.settings)
    own = folder / gateway.name
    own.mkdir()
    try:
        gateway.install()
        subject.version = gateway.version
        gateway.start(own, upstream_port)
    except (Unavailable, OSError, RuntimeError) as error:
        gateway.stop()
        subject.error = str(error)
    else:
        subject.start_s = gateway.start_s
        subject.idle_memory_mb = used(gateway)["memory_mb"]
    print(f"{gateway.name} {subject.version}: {subject.error or gateway.settings}", flush=True)
    return subject


def _rounds(bench: Bench, folder: Path, running: list[Gateway]) -> None:
    for gateway in running:
        for case in bench.cases:
            bench.runs.append(_run(gateway, case, folder, WARM_UP_S, 0))
    for number in range(1, bench.rounds + 1):
        for case in bench.cases:
            for index in range(len(running)):
                gateway = running[(index + number) % len(running)]
                run = _run(gateway, case, folder, bench.seconds, number)
                bench.runs.append(run)
                told = run.load
                print(
                    f"{number}/{bench.rounds} {case.name:28} {gateway.name:9} "
                    f"{told.rate:9,.0f}/s  p50 {told.p50_ms:8.2f} ms  p99 {told.p99_ms:8.2f} ms  "
                    f"cpu {run.cpu_us:6,.0f} us" + (f"  failed {told.not_ok}" * bool(told.not_ok)),
                    flush=True,
                )


def _run(gateway: Gateway, case: Case, folder: Path, seconds: float, number: int) -> Run:
    before = used(gateway)
    told = load.run(
        folder,
        gateway.base_url,
        gateway.path(case),
        gateway.headers(case),
        request_body(case),
        case.connections,
        seconds,
    )
    after = used(gateway)
    answers = max(told.answers, 1)
    return Run(
        gateway=gateway.name,
        case=case.name,
        round=number,
        load=told,
        cpu_us=(after["cpu_s"] - before["cpu_s"]) / answers * 1e6,
        behind_cpu_us=(after["behind_cpu_s"] - before["behind_cpu_s"]) / answers * 1e6,
    )


def _bill(bench: Bench, gateway: Tollgate) -> Bill:
    """Compares all that was served: rounds, warm-up and streams."""
    served = sum(run.load.served for run in bench.runs if run.gateway == gateway.name)
    served += sum(each.delays.complete for each in bench.streams if each.where == gateway.name)
    billed = gateway.billed(served)
    return Bill(
        served=served,
        billed=billed.usage_events,
        free=billed.free_events,
        unfinished=billed.unfinished,
        hold_ratio_p50=billed.ratio(0.5),
        hold_ratio_p99=billed.ratio(0.99),
    )


def _drain(bench: Bench, folder: Path, events: int) -> None:
    for kind in backlog.PLACES:
        own = folder / f"drain-{kind.replace(' + ', '-')}"
        own.mkdir()
        try:
            with backlog.place(kind, own) as where:
                drain = backlog.measure(own, where, events)
        except Unavailable as error:
            print(f"drain on {kind}: {error}", flush=True)
            continue
        bench.drains.append(drain)
        for role in drain.roles:
            print(f"drain on {kind}: {role.role} {role.rate:,.0f} events/s", flush=True)


def _write(bench: Bench, out: Path) -> None:
    bench.runs = [run for run in bench.runs if run.round]
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(bench)) + b"\n")
    (out / "README.md").write_text(report.markdown(bench))
    (out / "answers.svg").write_text(report.plot(bench))
    print(f"\n{report.markdown(bench)}\nwritten to {out}")


if __name__ == "__main__":
    sys.exit(main())
