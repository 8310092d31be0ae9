"""The jobs of the simulated provider: what was asked, where it stands now, what it met.

A job's state is a function of the time, so that a waiting job costs nothing but its memory.
"""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple

from services.sim.media.knobs import Knobs

KEPT_JOBS: Final = 250_000
QUEUED, RUNNING, SUCCEEDED = "queued", "running", "succeeded"
FAILED, MODERATED, CANCELLED = "failed", "moderated", "cancelled"
ENDED: Final = frozenset({SUCCEEDED, FAILED, MODERATED, CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a create asks for. `operation` is image, video, speech, transcription, embedding or
    rerank; `more` what only the vendor's own answers need (texts, documents, the model's path)."""

    operation: str
    model: str
    prompt: str
    mime: str = ""
    count: int = 1
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    client_ref: str = ""
    units: Mapping[str, int] = field(default_factory=dict)
    inputs: bytes = b""  # a digest of the files given
    more: dict[str, Any] = field(default_factory=dict)


class Served(NamedTuple):
    """An output that was sent whole."""

    output: int
    size: int
    sha256: str


@dataclass(slots=True)
class Job:
    """One piece of work. Times are seconds of the wall clock; `ends` is infinite for a stuck job
    and `settled` a state that no longer depends on the time."""

    seq: int
    id: str
    provider: str
    ask: Ask
    knobs: Knobs
    created: float
    starts: float
    ends: float
    settled: str = ""
    polls: int = 0
    cancels: int = 0
    served_count: int = 0
    served: tuple[Served, ...] = ()
    hits: Counter[str] | None = None

    def state(self, now: float) -> str:
        if self.settled:
            return self.settled
        if now < self.starts:
            return QUEUED
        if now < self.ends:
            return RUNNING
        faults = self.knobs.faults
        if "job-fail" in faults:
            return FAILED
        return MODERATED if "job-moderated" in faults else SUCCEEDED

    def progress(self, now: float) -> int:
        """Percent; a job that does not end stays at 50."""
        if math.isinf(self.ends):
            return 50
        return max(0, min(99, int(100 * (now - self.starts) / max(1e-9, self.ends - self.starts))))

    @property
    def outputs(self) -> int:
        """How many outputs a success has."""
        faults = self.knobs.faults
        if "job-no-output" in faults:
            return 0
        return max(0, self.ask.count - faults.get("job-partial", 0))

    def units(self) -> Mapping[str, int]:
        """What a success is charged for."""
        return (
            {**self.ask.units, "images": self.outputs}
            if self.ask.operation == "image"
            else (self.ask.units)
        )

    def strikes(self, fault: str) -> bool:
        """Whether the job's fault of this name holds now; counts the ones that hold N times."""
        number = self.knobs.faults.get(fault)
        if number is None:
            return False
        if self.hits is None:
            self.hits = Counter()
        self.hits[fault] += 1
        return number == 0 or self.hits[fault] <= number

    def identity(self, index: int) -> bytes:
        """32 bytes that decide what output `index` looks like: the same for the same ask."""
        ask = self.ask
        text = f"{ask.operation}:{ask.model}:{ask.width}x{ask.height}:{index}:{ask.prompt}"
        return sha256(text.encode() + ask.inputs).digest()

    def finish(self, state: str, now: float) -> None:
        self.settled = state
        self.ends = min(self.ends, now)


class JobStore:
    """The newest 250,000 jobs by id, and counts of everything."""

    def __init__(self, seed: int, queue_s: float, run_s: float) -> None:
        self._seed = seed
        self._queue_s = queue_s
        self._run_s = run_s
        self._next_seq = 1
        self.reset()

    def reset(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._by_key: OrderedDict[str, Job] = OrderedDict()
        self._by_ref: dict[str, list[Job]] = {}
        self._tries: OrderedDict[bytes, int] = OrderedDict()
        self.totals: Counter[str] = Counter()

    def tried(self, provider: str, ask: Ask) -> int:
        """How many creates of this prompt came before; counts this one."""
        key = sha256(f"{provider}:{ask.model}:{ask.prompt}".encode()).digest()[:12]
        before = self._tries.pop(key, 0)
        self._tries[key] = before + 1
        if len(self._tries) > KEPT_JOBS:
            self._tries.popitem(last=False)
        return before

    def add(self, provider: str, ask: Ask, knobs: Knobs, form: str, at_once: bool) -> Job:
        """A new job whose id has the vendor's form (`{}` stands for 32 hexadecimal digits)."""
        now = time.time()
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        core = f"{seq:08x}" + sha256(f"{self._seed}:{seq}:{ask.prompt}".encode()).hexdigest()[:24]
        queue_s = 0.0 if at_once else _seconds(knobs.queue_ms, self._queue_s)
        run_s = 0.0 if at_once else _seconds(knobs.run_ms, self._run_s)
        run_s += knobs.faults.get("late-success", 0)
        if "job-stuck" in knobs.faults:
            run_s = math.inf
        job = Job(
            seq=seq,
            id=form.format(core),
            provider=provider,
            ask=ask,
            knobs=knobs,
            created=now,
            starts=now + queue_s,
            ends=now + queue_s + run_s,
        )
        self._jobs[job.id] = job
        if ask.client_ref:
            self._by_ref.setdefault(ask.client_ref, []).append(job)
        if len(self._jobs) > KEPT_JOBS:
            _, dropped = self._jobs.popitem(last=False)
            self._by_ref.pop(dropped.ask.client_ref, None)
        self.totals["creates"] += 1
        self.totals["creates:" + provider] += 1
        return job

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def keyed(self, key: str) -> Job | None:
        """The job that an idempotency key has made."""
        return self._by_key.get(key)

    def key(self, key: str, job: Job) -> None:
        self._by_key[key] = job
        if len(self._by_key) > KEPT_JOBS:
            self._by_key.popitem(last=False)

    def referred(self, client_ref: str) -> list[Job]:
        """The jobs with this reference, oldest first."""
        return self._by_ref.get(client_ref, [])

    def newest(self, provider: str) -> Iterator[Job]:
        return (job for job in reversed(self._jobs.values()) if job.provider == provider)

    def all(self) -> Iterator[Job]:
        """Oldest first."""
        return iter(self._jobs.values())

    def delete(self, job_id: str) -> None:
        """Forgets what the vendor's API forgets; the oracle keeps the job under another name."""
        job = self._jobs.pop(job_id)
        self._jobs["deleted:" + job_id] = job


def _seconds(told_ms: int | None, default_s: float) -> float:
    return default_s if told_ms is None else told_ms / 1000
