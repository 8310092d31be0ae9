"""What the provider tells about itself under `/sim/media`: every job, every count, every charge."""

import time
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from itertools import islice
from typing import Any, Final

from services.sim import prices
from services.sim.http import Request
from services.sim.media import made
from services.sim.media.jobs import ENDED, SUCCEEDED, Job, JobStore

_PAGE_MAX: Final = 10_000


def answer(store: JobStore, table: prices.Table, what: str, request: Request) -> Any:
    """`jobs`, `jobs/ID`, `totals`, `finish/ID`; None for anything else or an unknown job."""
    kind, _, job_id = what.partition("/")
    now = time.time()
    if kind == "totals":
        return _totals(store, table, now)
    if kind == "jobs" and not job_id:
        return _page(store, table, now, request.query)
    job = store.get(job_id)
    if job is None or kind not in ("jobs", "finish"):
        return None
    if kind == "finish" and job.state(now) not in ENDED:
        job.finish(SUCCEEDED, now)
    return {**_told(job, table, now), "outputs": _outputs(job, now)}


def _page(store: JobStore, table: prices.Table, now: float, query: dict[str, str]) -> Any:
    after, limit = int(query.get("after", "0")), int(query.get("limit", str(_PAGE_MAX)))
    known = store.referred(query["ref"]) if "ref" in query else store.all()
    found: Iterable[Job] = (job for job in known if job.seq > after)
    if "model" in query:
        found = (job for job in found if job.ask.model == query["model"])
    if "provider" in query:
        found = (job for job in found if job.provider == query["provider"])
    jobs = [_told(job, table, now) for job in islice(found, min(limit, _PAGE_MAX))]
    return {"jobs": jobs, "last": max((job["seq"] for job in jobs), default=after)}


def _told(job: Job, table: prices.Table, now: float) -> dict[str, Any]:
    ask, state = job.ask, job.state(now)
    charged = state == SUCCEEDED and job.outputs > 0
    units = dict(job.units()) if charged else {}
    return {
        "seq": job.seq,
        "id": job.id,
        "provider": job.provider,
        "operation": ask.operation,
        "model": ask.model,
        "client_ref": ask.client_ref,
        "prompt": ask.prompt,
        "faults": [f"{name}-{number}" for name, number in job.knobs.faults.items()],
        "created_us": int(job.created * 1e6),
        "ended_us": int(job.ends * 1e6) if state in ENDED else None,
        "state": state,
        "polls": job.polls,
        "cancels": job.cancels,
        "served": job.served_count,
        "sent": [served._asdict() for served in job.served],
        "units": units,
        "charged": charged,
        "charge_usd": prices.charge(table, ask.model, units) if charged else None,
    }


def _outputs(job: Job, now: float) -> list[dict[str, Any]]:
    """What a success has made, as it should arrive."""
    if job.state(now) != SUCCEEDED or not job.ask.mime:
        return []
    outputs = []
    for index in range(job.outputs):
        data = made.output(job, index)
        told = {"index": index, "mime": job.ask.mime, "bytes": len(data)}
        outputs.append({**told, "sha256": sha256(data).hexdigest()})
    return outputs


def _totals(store: JobStore, table: prices.Table, now: float) -> dict[str, Any]:
    states: Counter[str] = Counter()
    references: Counter[str] = Counter()
    for job in store.all():
        states[job.state(now)] += 1
        if job.ask.client_ref:
            references[job.ask.client_ref] += 1
    counted = store.totals
    names = ("creates", "refused", "polls", "cancels", "served")
    return {
        **{name: counted[name] for name in names},
        "by_provider": {
            name.partition(":")[2]: n for name, n in counted.items() if name.startswith("creates:")
        },
        "by_state": dict(states),
        "duplicate_refs": sorted(ref for ref, n in references.items() if n > 1)[:1000],
    }
