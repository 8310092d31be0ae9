"""Who pays: judges how one admitted request ended, and estimates usage that nobody told."""

from enum import StrEnum
from typing import Final, Protocol

import msgspec

from schemas.errors import Code, Outcome, Stage
from services.core.usage import INPUT

BYTES_PER_TOKEN: Final = 4
PPM: Final = 1_000_000


class Ending(StrEnum):
    """What stopped the exchange with the upstream, as its caller saw it."""

    ANSWERED = "answered"  # the upstream sent all that it wanted to send
    CONNECT_FAILED = "connect_failed"  # nothing was sent
    TIMEOUT = "timeout"  # first byte, idle or total
    BROKEN = "broken"  # the connection broke before the end of the reply
    CLIENT_GONE = "client_gone"  # the client hung up
    BUDGET_CUT = "budget_cut"  # we ended the stream: its budget was used up
    REVOKED = "revoked"  # we ended it: its key was taken away
    GATEWAY = "gateway"  # we could not go on: disk, a bug, a sealed outbox


# What ended a stream that its key may no longer pay for, and the code when nothing is due yet.
_CUTS: Final = {
    Ending.BUDGET_CUT: Code.INSUFFICIENT_BALANCE,
    Ending.REVOKED: Code.INVALID_API_KEY,
}


class Answer(Protocol):
    """What is known of the answer: a `ResponseFacts` or a `StreamScan`."""

    @property
    def usage(self) -> dict[str, int] | None: ...
    @property
    def output_told(self) -> bool: ...
    @property
    def finished(self) -> bool: ...
    @property
    def complete_at_eof(self) -> bool: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def has_content(self) -> bool: ...
    @property
    def output_bytes(self) -> int: ...
    @property
    def error(self) -> tuple[str, str] | None: ...
    @property
    def tier(self) -> str | None: ...


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A billed outcome has `usage` and neither `code` nor `stage`; a free one the reverse.
    `estimated`: part of `usage` was not told by the upstream. The caller caps its cost to the
    hold."""

    outcome: Outcome
    code: Code | None = None
    stage: Stage | None = None
    usage: dict[str, int] = {}
    estimated: bool = False

    @property
    def billed(self) -> bool:
        return self.code is None


def judge(
    ending: Ending,
    *,
    status: int,
    answer: Answer | None,
    streaming: bool,
    relayed: bool,
    text_bytes: int,
    cache_share_ppm: int = 0,
    wants_output: bool = True,
) -> Verdict:
    """The verdict on one request.

    `status` is the upstream's (0: none), `answer` None when no body of a 2xx was read, `relayed`
    whether a byte of the body went to the client. `text_bytes` and `cache_share_ppm` (the part of
    the session's last input that came from the cache) feed the estimate. Without `wants_output`
    (a request that only fills the prompt cache) an answer without any is what was ordered."""
    stage = Stage.STREAM if relayed else Stage.UPSTREAM
    if ending is Ending.GATEWAY:
        return _free(Code.INTERNAL_ERROR, Stage.GATEWAY)
    if ending is Ending.CONNECT_FAILED:
        return _free(Code.UPSTREAM_ERROR, Stage.UPSTREAM)
    if status and not 200 <= status < 300:
        return _free(Code.UPSTREAM_ERROR, Stage.UPSTREAM)
    if answer is not None and answer.error:
        return _free(Code.UPSTREAM_STREAM_ERROR if relayed else Code.UPSTREAM_ERROR, stage)
    if ending is Ending.CLIENT_GONE:
        if not (streaming and relayed and answer is not None and answer.has_content):
            return _free(Code.CLIENT_GONE, stage, Outcome.CLIENT_GONE)
        return _billed(Outcome.CLIENT_ABORTED, answer, text_bytes, cache_share_ppm)
    if ending in _CUTS:
        if not (relayed and answer is not None and answer.has_content):
            return _free(_CUTS[ending], stage)
        return _billed(Outcome.BUDGET_CUT, answer, text_bytes, cache_share_ppm)
    if answer is None or not _is_whole(answer, ending):
        return _free(Code.TIMEOUT if ending is Ending.TIMEOUT else Code.UPSTREAM_TRUNCATED, stage)
    if wants_output and _is_empty(answer):
        return _free(Code.UPSTREAM_EMPTY, stage)
    return _billed(Outcome.COMPLETED, answer, text_bytes, cache_share_ppm)


def refused(code: Code) -> Verdict:
    """The verdict on a request that was never admitted."""
    if code is Code.NO_CAPACITY:
        stage = Stage.ROUTING
    elif code in (Code.INTERNAL_ERROR, Code.UNAVAILABLE):
        stage = Stage.GATEWAY
    else:
        stage = Stage.ADMISSION
    return Verdict(outcome=Outcome.REFUSED, code=code, stage=stage)


def _free(code: Code, stage: Stage, outcome: Outcome = Outcome.FAILED) -> Verdict:
    return Verdict(outcome=outcome, code=code, stage=stage)


def _is_whole(answer: Answer, ending: Ending) -> bool:
    """What goes wrong after the end marker takes nothing from the client."""
    return answer.finished or (ending is Ending.ANSWERED and answer.complete_at_eof)


def _is_empty(answer: Answer) -> bool:
    if answer.has_content:
        return False
    made = (answer.usage or {}).get("output", 0)
    return not (answer.finish_reason and made)


def _billed(outcome: Outcome, answer: Answer, text_bytes: int, cache_share_ppm: int) -> Verdict:
    """Told usage counts as told. What is missing is estimated: the input from the size of the
    request, the output from what the client was sent. A count of zero tells nothing: every
    request has input, and what was sent was made."""
    told = answer.usage or {}
    input_told = any(told.get(name) for name in INPUT)
    output_told = answer.output_told and (bool(told.get("output")) or not answer.output_bytes)
    if input_told and output_told:
        return Verdict(outcome=outcome, usage=told)
    usage = dict(told)
    if not input_told:
        usage |= _input_estimate(text_bytes, cache_share_ppm)
    if not output_told:
        sent = answer.output_bytes // BYTES_PER_TOKEN
        usage["output"] = max(told.get("output", 0), sent)
    return Verdict(
        outcome=outcome,
        usage={name: units for name, units in usage.items() if units},
        estimated=True,
    )


def _input_estimate(text_bytes: int, cache_share_ppm: int) -> dict[str, int]:
    tokens = text_bytes // BYTES_PER_TOKEN
    cached = tokens * cache_share_ppm // PPM
    return {"input": tokens - cached, "cache_read": cached}
