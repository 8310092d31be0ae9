"""What goes in and out of the store of batches: plain records and refusals."""

from typing import Any

import msgspec

from services.core.batches import MESSAGES, LineState, Phase, request_id


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `batch`; see the table for each field."""

    id: str
    account_id: str
    key_id: str
    endpoint: str
    input_id: str
    lines_id: str
    headers: str
    extra: str
    phase: Phase
    epoch: int
    claims: int
    next_at: int | None
    total: int
    succeeded: int
    errored: int
    canceled: int
    expired: int
    errors: str
    output_id: str
    error_id: str
    keep_s: int
    created_at: int
    expires_at: int
    started_at: int | None
    cancel_at: int | None
    finishing_at: int | None
    ended_at: int | None
    deleted_at: int | None
    model: str = ""
    usage: str = "{}"

    @property
    def is_messages(self) -> bool:
        """It came by Anthropic's route."""
        return self.endpoint == MESSAGES


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `batch_line`; see the table for each field."""

    batch_id: str
    no: int
    custom_id: str
    place: int
    bytes: int
    state: LineState
    try_no: int
    taken_by: str
    status: int
    answer: str
    code: str


class NewLine(msgspec.Struct, frozen=True):
    """A line as the input has it: its name, first byte and size."""

    custom_id: str
    place: int
    bytes: int


class TooManyBatches(Exception):
    """The account has as many open batches as it may."""


class BatchLost(Exception):
    """Another process has the batch: write nothing more."""


def as_batch(row: Any) -> Batch:
    """A row of `batch`."""
    return Batch(**{**row._mapping, "phase": Phase(row.phase)})


def as_line(row: Any) -> Line:
    """A row of `batch_line`."""
    return Line(**{**row._mapping, "state": LineState(row.state)})


def request_of(batch: Batch, line: Line) -> str:
    """The request id of the line's present try."""
    return request_id(batch.id, line.no, line.try_no, batch.created_at)
