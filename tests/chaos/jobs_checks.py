"""What must hold after the chaos of jobs; the provider's own account of its work is the truth."""

import threading
import time
from collections import Counter, defaultdict

from sqlalchemy import Connection, select

from services.backends.sql import tables
from services.backends.sql.engine import DatabaseUnavailable, read
from services.backends.sql.job_records import Job
from services.backends.sql.job_tables import artifact, job
from services.core.jobs import TERMINAL
from tests.chaos.jobs_house import JobsHouse
from tests.chaos.jobs_mix import FINDABLE, LOST_CREATES, Ask

PAGE = 5000
LATE_US = 10_000_000
ENDS = (job.c.id, job.c.phase, job.c.charged_nano, job.c.error_code, job.c.finished_at)
# Nano-USD by class of the provider's units, and per call; the published prices.
PRICES = {
    "veo-3.1": ({"seconds": 100_000_000}, 50_000_000),
    "sim-video": ({"seconds": 10_000_000}, 1_000_000),
    "sim-image": ({"images": 10_000_000}, 0),
    "sim-speech": ({"characters": 10_000}, 0),
}
COMPARED = 40  # jobs whose artifacts are compared with what the provider made


class EndWatch(threading.Thread):
    """Remembers every end when it is first seen."""

    def __init__(self, house: JobsHouse) -> None:
        super().__init__(daemon=True)
        self._house = house
        self._over = threading.Event()
        self.seen: dict[str, tuple] = {}

    def run(self) -> None:
        newest = 0
        while not self._over.is_set():
            began_s = time.monotonic()
            query = select(*ENDS).where(job.c.finished_at > newest - LATE_US)
            try:
                rows = read(self._house.engine, lambda c, query=query: c.execute(query).all())
            except DatabaseUnavailable:
                rows = []
            for row in rows:
                self.seen.setdefault(row.id, tuple(row))
                newest = max(newest, row.finished_at)
            self._over.wait(max(0.5, 10 * (time.monotonic() - began_s)))

    def end(self) -> None:
        self._over.set()
        self.join()


class Checks:
    """`problems` is empty when all is well."""

    def __init__(self, house: JobsHouse, asks: dict[str, Ask], watch: EndWatch) -> None:
        self._house = house
        self._asks = asks  # by job id
        self._watch = watch
        self.problems: list[str] = []
        self.figures: list[str] = []

    def run(self, caught_up_s: float) -> None:
        told = self._house.reconcile(caught_up_s)
        if told.returncode != 0:
            self.problems.append(f"reconcile exit {told.returncode}: {told.stdout[-3000:]}")
        jobs = {each.id: each for each in self._house.jobs()}
        works = self._works()
        if len(jobs) != len(self._asks):
            self.problems.append(f"{len(self._asks)} submitted, {len(jobs)} there")
        for job_id, asked in self._asks.items():
            made = works.get(asked.tag, [])
            held = jobs.get(job_id)
            if held is None:
                self.problems.append(f"{asked}: lost")
                continue
            self._one(asked, held, made)
        self._ends(jobs)
        self._books(jobs)
        self._artifacts(jobs, works)
        self._figures(jobs, works)

    def _works(self) -> dict[str, list[dict]]:
        """What the provider made, by the tag in its prompt."""
        found: dict[str, list[dict]] = defaultdict(list)
        last = 0
        while True:
            page = self._house.sim.get(f"/sim/media/jobs?after={last}&limit={PAGE}")
            for each in page["jobs"]:
                found[each["prompt"].partition(" ")[0]].append(each)
            if len(page["jobs"]) < PAGE:
                return found
            last = page["last"]

    def _one(self, asked: Ask, held: Job, made: list[dict]) -> None:
        where = f"job_{held.id} {asked.model} {asked.fault or 'sound'}: {held.phase}"
        if held.phase not in TERMINAL or held.next_at is not None:
            self._wrong(f"{where}: has not ended")
        if len(made) > 1:
            self._wrong(f"{where}: made {len(made)} times: {[each['id'] for each in made]}")
        if held.phase == "completed":
            if asked.is_spoiled:
                self._wrong(f"{where}: completed without anything usable")
            elif not made or not made[0]["charged"]:
                self._wrong(f"{where}: the provider made nothing")
            elif held.charged_nano != _price(asked, made[0]["units"]):
                self._wrong(f"{where}: {held.charged_nano} for {made[0]['units']}")
        elif held.charged_nano:
            self._wrong(f"{where}: charged {held.charged_nano}")
        elif not asked.is_spoiled and not self._is_excused(asked, held):
            self._wrong(f"{where}: {held.error_code} {held.error_message}, provider {made}")

    def _is_excused(self, asked: Ask, held: Job) -> bool:
        """A sound job that was not delivered: its client cancelled it, or nobody can know whether
        its create arrived because the answer was lost, with us or on the way."""
        if held.phase == "cancelled":
            return asked.cancel_after_s is not None
        if asked.model in FINDABLE:
            return False
        return held.error_code == "upstream_unknown" or (
            held.error_code == "no_capacity" and asked.fault.startswith(LOST_CREATES)
        )

    def _ends(self, jobs: dict[str, Job]) -> None:
        names = [column.name for column in ENDS]
        for job_id, seen in self._watch.seen.items():
            now = tuple(getattr(jobs[job_id], name) for name in names)
            if now != seen:
                self._wrong(f"job_{job_id}: an end has changed: {seen}, now {now}")

    def _books(self, jobs: dict[str, Job]) -> None:
        """Every job has one settlement of exactly what it says; no lease has money left."""
        us = self._house.account.id

        def fn(c: Connection) -> tuple:
            settled, lease = tables.settlement.c, tables.lease.c
            rows = c.execute(
                select(settled.request_id, settled.charged_nano).where(settled.account_id == us)
            ).all()
            leases = select(lease.id).where(lease.account_id == us, lease.state != "closed")
            dead = select(tables.dead_event.c.event_id, tables.dead_event.c.detail)
            limit = tables.limit_row.c
            leased = select(limit.id, limit.leased_nano, limit.settled_nano)
            return rows, *(c.execute(each).all() for each in (leases, dead, leased))

        rows, leases, dead, limits = read(self._house.engine, fn)
        charged = {row.request_id: row.charged_nano for row in rows}
        told = {each.request_id: each.charged_nano for each in jobs.values()}
        for name in charged.keys() | told.keys():
            if charged.get(name) != told.get(name):
                self._wrong(f"{name}: the job says {told.get(name)}, the books {charged.get(name)}")
        self.problems += [f"lease {row.id} is open" for row in leases]
        self.problems += [f"dead: {row.event_id}: {row.detail}" for row in dead]
        for row in limits:
            if row.leased_nano or row.settled_nano not in (0, sum(told.values())):
                self._wrong(f"limit {row.id}: leased {row.leased_nano}, spent {row.settled_nano}")

    def _artifacts(self, jobs: dict[str, Job], works: dict[str, list[dict]]) -> None:
        done = [each for each in jobs.values() if each.phase == "completed"]
        for each in done[:: max(1, len(done) // COMPARED)]:
            query = select(artifact.c.sha256).where(artifact.c.job_id == each.id)
            stored = read(self._house.engine, lambda c, q=query: c.execute(q).scalars().all())
            for one in works[self._asks[each.id].tag]:
                made = self._house.sim.get(f"/sim/media/jobs/{one['id']}")["outputs"]
                if sorted(stored) != sorted(output["sha256"] for output in made):
                    self._wrong(f"job_{each.id}: what is stored is not what was made")

    def _figures(self, jobs: dict[str, Job], works: dict[str, list[dict]]) -> None:
        phases = Counter(str(each.phase) for each in jobs.values())
        faults = Counter(each.error_code for each in jobs.values() if each.error_code)
        creates = sum(len(each) for each in works.values())
        attempts = sum(each.attempt_no for each in jobs.values())
        charges = [each.charged_nano for each in jobs.values() if each.charged_nano]
        self.figures += [
            "ends: " + ", ".join(f"{name} {n}" for name, n in sorted(phases.items())),
            "free because: " + ", ".join(f"{name} {n}" for name, n in sorted(faults.items())),
            f"{attempts} attempts, {creates} upstream creates, {len(charges)} charges: "
            f"${sum(charges) / 1e9:.6f}; {len(self._watch.seen)} ends seen when they came",
        ]

    def _wrong(self, what: str) -> None:
        self.problems.append(what)


def _price(asked: Ask, units: dict[str, int]) -> int:
    per_unit, per_call = PRICES[asked.model]
    return per_call + sum(units.get(name, 0) * nano for name, nano in per_unit.items())
