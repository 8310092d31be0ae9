"""What goes in and out of the job store: plain records and refusals."""

from typing import Any, Final, NamedTuple

import msgspec

from services.core.jobs import Phase

ERASED: Final = "{}"  # params of a job whose inputs are gone; no kind goes without any


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `job`; see the table for each field."""

    id: str
    request_id: str
    account_id: str
    key_id: str
    source: str
    external_id: str
    kind: str
    model: str
    priced_as: str
    group_name: str
    price_version: str
    params: str
    body_bytes: int
    phase: Phase
    version: int
    epoch: int
    claims: int
    next_at: int | None
    active: bool
    priority: int
    channel: str
    attempt_no: int
    not_sent: int
    hold_nano: int
    lease_id: str
    start_by: int | None
    deadline_at: int
    eta_s: int
    progress_ppm: int | None
    cancel_at: int | None
    cancel_outcome: str
    error_code: str
    error_message: str
    callback_url: str
    extra: str
    retention_s: int
    on_late: str
    retry_of: str
    units: str
    charged_nano: int
    created_at: int
    started_at: int | None
    finished_at: int | None

    @property
    def parameters(self) -> dict[str, Any]:
        """`params`, decoded."""
        return msgspec.json.decode(self.params, type=dict[str, Any])

    @property
    def is_erased(self) -> bool:
        """Its client had inputs and results erased."""
        return self.params == ERASED


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a submission fixes. `deadline_s`, `start_within_s` (None: no bound) and `retention_s`
    in seconds; `fingerprint` tells equal submissions; `units` are
    what the hold covers; `capped_model` the model when a cap of the key counts for it."""

    id: str
    account_id: str
    key_id: str
    source: str
    kind: str
    model: str
    priced_as: str
    group: str
    price_version: str
    params: dict[str, Any]
    fingerprint: str
    hold_nano: int
    units: dict[str, int]
    eta_s: int
    deadline_s: int
    retention_s: int
    start_within_s: int | None = None
    external_id: str = ""
    body_bytes: int = 0
    priority: int = 0
    callback_url: str = ""
    extra: dict[str, str] = {}
    on_late: str = "attach"
    retry_of: str = ""
    capped_model: str = ""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `attempt`."""

    job_id: str
    no: int
    channel: str
    upstream_model: str
    client_ref: str
    state: str
    upstream_id: str
    links: str
    polls: int
    gone: int
    gone_at: int | None
    status: int
    message: str
    provider_cost_nano: int
    watch_until: int | None
    sent_at: int
    taken_at: int | None
    ended_at: int | None


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `artifact`."""

    id: str
    job_id: str
    place: int
    kind: str
    mime: str
    bytes: int
    sha256: str
    width: int | None
    height: int | None
    duration_ms: int | None
    late: bool
    created_at: int
    expires_at: int
    deleted_at: int | None


class NewArtifact(NamedTuple):
    """Bytes that lie in the object store under `sha256`, checked."""

    kind: str
    mime: str
    bytes: int
    sha256: str
    width: int | None
    height: int | None
    duration_ms: int | None


class JobEvent(NamedTuple):
    """One visible change of a job; `seq` is the version that it made."""

    id: int
    job_id: str
    seq: int
    type: str
    data: str
    created_at: int


class Submitted(NamedTuple):
    """`replayed`: the same submission had been made before; nothing new was."""

    job: Job
    replayed: bool


class FingerprintConflict(Exception):
    """The external id or idempotency key was used for something else. `name` as in the table."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class QueueFull(Exception):
    """The account has as many open jobs as it may have."""


class ClaimLost(Exception):
    """Another worker has the job by now, or it has ended: drop everything, write nothing."""
