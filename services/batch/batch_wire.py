"""A batch as OpenAI's API shows it."""

from typing import Any, Final

import msgspec

from services.backends.sql.batch_records import Batch
from services.core.batches import Phase

PREFIX: Final = "batch_"
MESSAGES_PREFIX: Final = "msgbatch_"
_STATUS: Final = {Phase.RUNNING: "in_progress", Phase.FINISHING: "finalizing"}


def batch_view(batch: Batch) -> dict[str, Any]:
    """The object of OpenAI's API; a batch of Anthropic's route keeps its name there."""
    errors = msgspec.json.decode(batch.errors)
    ended = {phase: _seconds(batch.ended_at) if batch.phase is phase else None for phase in Phase}
    status = _STATUS.get(batch.phase, batch.phase.value)
    if batch.cancel_at is not None and batch.ended_at is None:
        status = "cancelling"
    return {
        "id": (MESSAGES_PREFIX if batch.is_messages else PREFIX) + batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_id,
        "completion_window": "24h",
        "status": status,
        "output_file_id": batch.output_id or None,
        "error_file_id": batch.error_id or None,
        "created_at": _seconds(batch.created_at),
        "in_progress_at": _seconds(batch.started_at),
        "expires_at": _seconds(batch.expires_at),
        "finalizing_at": _seconds(batch.finishing_at),
        "completed_at": ended[Phase.COMPLETED],
        "failed_at": ended[Phase.FAILED],
        "expired_at": ended[Phase.EXPIRED],
        "cancelling_at": _seconds(batch.cancel_at),
        "cancelled_at": ended[Phase.CANCELLED],
        "request_counts": {
            "total": batch.total,
            "completed": batch.succeeded,
            "failed": batch.errored + batch.expired,
        },
        "model": batch.model or None,
        "usage": msgspec.json.decode(batch.usage) or None,
        "metadata": msgspec.json.decode(batch.extra) or None,
    }


def _seconds(time_us: int | None) -> int | None:
    return None if time_us is None else time_us // 1_000_000
