"""The life of a job: phases inside, states outside, and what both wires call them.

    queued -> submitting -> polling -> fetching -> completed
                  |            ^
                  +-> unknown -+        any of them -> failed | cancelled | expired

A terminal phase never changes: whichever terminal is committed first stands. Money is due for
`completed` alone.
"""

from enum import StrEnum
from typing import Final

from schemas.errors import Code, Outcome, Stage


class Phase(StrEnum):
    QUEUED = "queued"  # money held, nothing sent
    SUBMITTING = "submitting"  # the attempt is written, the create may be on its way
    UNKNOWN = "unknown"  # the create may have landed: looked up, never sent again blindly
    POLLING = "polling"  # the upstream has it
    FETCHING = "fetching"  # the upstream finished: its results are copied and checked
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL: Final = frozenset({Phase.COMPLETED, Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED})
ACTIVE: Final = frozenset({Phase.SUBMITTING, Phase.UNKNOWN, Phase.POLLING, Phase.FETCHING})

_ENDS: Final = frozenset({Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED})
MOVES: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.QUEUED: frozenset({Phase.SUBMITTING}) | _ENDS,
    Phase.SUBMITTING: frozenset(
        {Phase.QUEUED, Phase.UNKNOWN, Phase.POLLING, Phase.FETCHING, Phase.COMPLETED}
    )
    | _ENDS,
    Phase.UNKNOWN: frozenset({Phase.QUEUED, Phase.POLLING}) | _ENDS,
    Phase.POLLING: frozenset({Phase.POLLING, Phase.FETCHING, Phase.COMPLETED}) | _ENDS,
    Phase.FETCHING: frozenset({Phase.FETCHING, Phase.COMPLETED}) | _ENDS,
    **dict.fromkeys(TERMINAL, frozenset()),
}


class State(StrEnum):
    """What a client of `/v1/jobs` sees."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class AttemptState(StrEnum):
    SENDING = "sending"
    UNKNOWN = "unknown"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    NOT_SENT = "not_sent"
    FAILED = "failed"
    CANCELLED = "cancelled"
    WATCHING = "watching"  # the job has ended, the upstream may still work on it
    LOST = "lost"  # nobody can tell what became of it


class Fault(StrEnum):
    """Why a job did not complete: `error.code` of both views."""

    UPSTREAM_REJECTED = "upstream_rejected"
    SAFETY_BLOCKED = "safety_blocked"
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_UNKNOWN = "upstream_unknown"  # nobody can tell what became of it
    ARTIFACT_FETCH_FAILED = "artifact_fetch_failed"
    ARTIFACT_INVALID = "artifact_invalid"
    NO_CAPACITY = "no_capacity"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    START_DEADLINE_EXCEEDED = "start_deadline_exceeded"
    PROVIDER_GONE = "provider_gone"  # its channel is no longer configured
    CANCELLED_BY_USER = "cancelled_by_user"
    GATEWAY_FAULT = "gateway_fault"


RETRYABLE: Final = frozenset(
    {
        Fault.UPSTREAM_FAILED,
        Fault.UPSTREAM_UNKNOWN,
        Fault.ARTIFACT_FETCH_FAILED,
        Fault.ARTIFACT_INVALID,
        Fault.NO_CAPACITY,
        Fault.DEADLINE_EXCEEDED,
        Fault.START_DEADLINE_EXCEEDED,
        Fault.PROVIDER_GONE,
        Fault.GATEWAY_FAULT,
    }
)

_ENDINGS: Final[dict[Fault, tuple[Code, Stage, int]]] = {
    Fault.UPSTREAM_REJECTED: (Code.UPSTREAM_ERROR, Stage.UPSTREAM, 400),
    Fault.SAFETY_BLOCKED: (Code.UPSTREAM_ERROR, Stage.UPSTREAM, 451),
    Fault.UPSTREAM_FAILED: (Code.UPSTREAM_ERROR, Stage.UPSTREAM, 502),
    Fault.UPSTREAM_UNKNOWN: (Code.UPSTREAM_TRUNCATED, Stage.UPSTREAM, 502),
    Fault.ARTIFACT_FETCH_FAILED: (Code.UPSTREAM_TRUNCATED, Stage.UPSTREAM, 502),
    Fault.ARTIFACT_INVALID: (Code.UPSTREAM_EMPTY, Stage.UPSTREAM, 502),
    Fault.NO_CAPACITY: (Code.NO_CAPACITY, Stage.ROUTING, 503),
    Fault.DEADLINE_EXCEEDED: (Code.TIMEOUT, Stage.UPSTREAM, 504),
    Fault.START_DEADLINE_EXCEEDED: (Code.TIMEOUT, Stage.ROUTING, 504),
    Fault.PROVIDER_GONE: (Code.NO_CAPACITY, Stage.ROUTING, 503),
    Fault.CANCELLED_BY_USER: (Code.CLIENT_GONE, Stage.UPSTREAM, 499),
    Fault.GATEWAY_FAULT: (Code.INTERNAL_ERROR, Stage.GATEWAY, 500),
}


class IllegalMove(Exception):
    """A programmer's error: the phase cannot become that one."""


def check_move(old: Phase, new: Phase) -> None:
    """Raises IllegalMove."""
    if new not in MOVES[old]:
        raise IllegalMove(f"{old} does not become {new}")


def state_of(phase: Phase) -> State:
    """What `/v1/jobs` calls it."""
    if phase is Phase.QUEUED:
        return State.QUEUED
    return State(phase.value) if phase in TERMINAL else State.RUNNING


def task_status(phase: Phase) -> str:
    """What `/v1/tasks` calls it: pending, running, completed, failed or cancelled."""
    state = state_of(phase)
    if state is State.QUEUED:
        return "pending"
    return "failed" if state is State.EXPIRED else state.value


def task_error(fault: Fault) -> str:
    """`error_code` on `/v1/tasks`: the product's word where it has one."""
    return "content_policy_violation" if fault is Fault.SAFETY_BLOCKED else fault.value


def ending(fault: Fault) -> tuple[Code, Stage, int, Outcome]:
    """How the free ending stands in the event log: code, stage, HTTP status, outcome."""
    code, stage, status = _ENDINGS[fault]
    gone = fault is Fault.CANCELLED_BY_USER
    return code, stage, status, Outcome.CLIENT_GONE if gone else Outcome.FAILED


def next_poll_s(age_s: float, eta_s: float, least_s: float, most_s: float, spread: float) -> float:
    """Seconds until a task of `age_s` is asked for again: a tenth of the time that such a
    generation takes, or of its age when it takes longer; `spread` in 0..1 moves it by up to a
    fifth."""
    return max(least_s, min(max(age_s, eta_s) * 0.1, most_s)) * (0.8 + 0.4 * spread)
