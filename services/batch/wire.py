"""One row, two views: a job as `/v1/jobs` and as `/v1/tasks` show it."""

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from services.backends.sql.job_records import Artifact, Attempt, Job
from services.batch.links import Links
from services.core.jobs import (
    RETRYABLE,
    TERMINAL,
    Fault,
    Phase,
    state_of,
    task_error,
    task_status,
)
from services.core.moments import rfc3339
from services.core.money import NANO_PER_USD, exact_usd
from services.core.upstream_words import client_text

_SOURCES: Final = {
    Fault.CANCELLED_BY_USER: "client",
    Fault.SAFETY_BLOCKED: "safety",
    Fault.NO_CAPACITY: "gateway",
    Fault.GATEWAY_FAULT: "gateway",
    Fault.DEADLINE_EXCEEDED: "gateway",
    Fault.START_DEADLINE_EXCEEDED: "gateway",
    Fault.PROVIDER_GONE: "gateway",
}


def job_view(job: Job, artifacts: Sequence[Artifact], links: Links) -> dict[str, Any]:
    """The object of `/v1/jobs`."""
    done = job.phase in TERMINAL
    return {
        "id": f"job_{job.id}",
        "object": "job",
        "external_id": job.external_id or None,
        "kind": job.kind,
        "model": job.model,
        "state": state_of(job.phase).value,
        "version": job.version,
        "progress": None if job.progress_ppm is None else job.progress_ppm / 1_000_000,
        "eta_seconds": None if done else job.eta_s,
        "created_at": moment(job.created_at),
        "started_at": moment(job.started_at),
        "completed_at": moment(job.finished_at),
        "deadline_at": moment(job.deadline_at),
        "cancel": {"requested_at": moment(job.cancel_at), "outcome": job.cancel_outcome},
        "output": [output_view(each, links) for each in artifacts],
        "error": _error(job),
        "usage": {"units": msgspec.json.decode(job.units) if done else {}},
        "cost": {
            "held_nano": 0 if done else job.hold_nano,
            "charged_nano": job.charged_nano,
            "charged_usd": exact_usd(job.charged_nano),
            "estimated_nano": None if done else job.hold_nano,
            "currency": "USD",
        },
        "attempts": job.attempt_no,
        "request_id": job.request_id,
        "retry_of": f"job_{job.retry_of}" if job.retry_of else None,
        "metadata": msgspec.json.decode(job.extra),
    }


def output_view(artifact: Artifact, links: Links) -> dict[str, Any]:
    """One artifact of a job."""
    link = links.sign(artifact)
    return {
        "artifact_id": artifact.id,
        "type": artifact.kind,
        "mime": artifact.mime,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "width": artifact.width,
        "height": artifact.height,
        "duration_seconds": _seconds(artifact.duration_ms),
        "index": artifact.place,
        "late": artifact.late,
        "url": link.url,
        "url_expires_at": moment(link.expires_at),
        "expires_at": moment(artifact.expires_at),
    }


def task_view(job: Job, artifacts: Sequence[Artifact], links: Links) -> dict[str, Any]:
    """The object of `/v1/tasks`. Its credits are numbers in USD."""
    found: dict[str, Any] = {
        "task_id": f"task_{job.id}",
        "out_task_id": job.external_id or None,
        "status": task_status(job.phase),
        "model": job.model,
    }
    if job.phase not in TERMINAL:
        return found | {
            "estimated_credits": usd(job.hold_nano),
            "estimated_seconds": job.eta_s,
        }
    found["completed_at"] = moment(job.finished_at)
    if job.phase is Phase.COMPLETED:
        found["credits_used"] = usd(job.charged_nano)
        found["output"] = [_task_output(each, links) for each in artifacts if not each.late]
    elif job.phase is Phase.CANCELLED:
        found["credits_used"] = 0
    else:
        found["error_code"] = task_error(Fault(job.error_code))
        found["error_message"] = job.error_message
    return found


def submitted_view(job: Job) -> dict[str, Any]:
    """The answer to `POST /v1/tasks/submit`."""
    return {
        "task_id": f"task_{job.id}",
        "out_task_id": job.external_id or None,
        "status": task_status(job.phase),
        "estimated_credits": usd(job.hold_nano),
        "estimated_seconds": job.eta_s,
    }


def attempt_view(attempt: Attempt) -> dict[str, Any]:
    """One try at an upstream."""
    return {
        "no": attempt.no,
        "channel": attempt.channel,
        "model": attempt.upstream_model,
        "state": attempt.state,
        "upstream_id": attempt.upstream_id or None,
        "client_ref": attempt.client_ref,
        "sent_at": moment(attempt.sent_at),
        "confirmed_at": moment(attempt.taken_at),
        "ended_at": moment(attempt.ended_at),
        "polls": attempt.polls,
        "status": attempt.status or None,
        "message": client_text(attempt.message, "") or None,
    }


def moment(time_us: int | None) -> str | None:
    """RFC 3339, UTC."""
    return None if time_us is None else rfc3339(time_us, 3)


def usd(nano: int) -> float:
    """USD as a number, for the product's credit fields."""
    return nano / NANO_PER_USD


def _seconds(duration_ms: int | None) -> float | int | None:
    if duration_ms is None:
        return None
    seconds = duration_ms / 1000
    return math.floor(seconds) if seconds.is_integer() else seconds


def _task_output(artifact: Artifact, links: Links) -> dict[str, Any]:
    found = {
        "type": artifact.kind,
        "url": links.sign(artifact).url,
        "mime": artifact.mime,
        "duration_seconds": _seconds(artifact.duration_ms),
        "width": artifact.width,
        "height": artifact.height,
    }
    return {name: value for name, value in found.items() if value is not None}


def _error(job: Job) -> dict[str, Any] | None:
    if not job.error_code:
        return None
    fault = Fault(job.error_code)
    return {
        "code": fault.value,
        "message": job.error_message,
        "retryable": fault in RETRYABLE,
        "source": _SOURCES.get(fault, "upstream"),
    }
