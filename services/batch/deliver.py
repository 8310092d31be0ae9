"""Copies what the upstream made into our store, checks it, and only then completes the job.

Usable is what can be told by its bytes to be what was asked for, stored under its SHA-256 and read
back. A job of which nothing usable arrived is free.
"""

from typing import Final
from urllib.parse import urlsplit

import msgspec

from services.backends.http.fetch import FetchFailed, FetchRefused
from services.backends.lifecycle import crash_point
from services.backends.objects.port import Draft, StoreUnavailable, TooLarge, chunks_of
from services.backends.sql.job_ends import Free
from services.backends.sql.job_records import Attempt, Job, NewArtifact
from services.batch.insist import insist
from services.batch.parts import Parts
from services.batch.providers.port import Done, Output, Provider
from services.batch.settle import bill, expected_cost_nano
from services.core.artifacts import ArtifactInvalid, inspect, inspect_pcm
from services.core.catalog import Channel
from services.core.jobs import AttemptState, Fault, Phase
from services.core.media import MADE

_AGAIN_S: Final = 2.0
_GIVE_UP_S: Final = 600.0
_STORE_TRIES: Final = 5
_GONE: Final = (404, 410)


class Unusable(Exception):
    """This output will never be usable. Its text is for the client, `detail` for the operator."""

    def __init__(self, fault: Fault, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.fault = fault
        self.detail = detail


class NotNow(Exception):
    """It could not be copied now."""


def deliver(
    parts: Parts, held: Job, tried: Attempt, channel: Channel, provider: Provider, done: Done
) -> None:
    """The outputs of a generation that can be asked for again."""
    try:
        kept, why = _copy_all(parts, held, channel, provider, done)
    except NotNow as ex:
        ended_at = tried.ended_at or parts.clock.now_us()
        if parts.clock.now_us() - ended_at < _GIVE_UP_S * 1_000_000:
            parts.claims.later(held, _AGAIN_S)
            return
        kept, why = [], _not_copied(str(ex))
    _settle(parts, held, done, kept, why)


def deliver_now(parts: Parts, held: Job, channel: Channel, provider: Provider, done: Done) -> None:
    """The outputs of a provider that answers with them: they exist nowhere else."""
    for attempt in range(1, _STORE_TRIES + 1):
        try:
            kept, why = _copy_all(parts, held, channel, provider, done)
            break
        except NotNow as ex:
            kept, why = [], _not_copied(str(ex))
            if attempt < _STORE_TRIES:
                parts.clock.sleep(0.2 * 2**attempt)
    _settle(parts, held, done, kept, why)


def _settle(
    parts: Parts, held: Job, done: Done, kept: list[NewArtifact], why: Unusable | None
) -> None:
    crash_point("batch.artifacts.kept")
    if kept:
        insist(parts, lambda: parts.ends.complete(held, kept, bill(parts, held, kept, done.told)))
        if held.started_at is not None:
            parts.typical.note(held.priced_as, parts.clock.now_us() - held.started_at)
        return
    if done.filtered:
        end = Free(
            Phase.FAILED,
            Fault.SAFETY_BLOCKED,
            "the provider's safety filter took every result",
            attempt=AttemptState.FAILED,
        )
    else:
        fault = why.fault if why is not None else Fault.UPSTREAM_FAILED
        message = str(why) if why is not None else "it ended without a result"
        cost_nano = expected_cost_nano(parts, held) if why is not None else 0
        end = Free(
            Phase.FAILED,
            fault,
            message,
            attempt=AttemptState.FAILED,
            provider_cost_nano=cost_nano,
            detail=why.detail if why is not None else "",
        )
    parts.ends.free(held, end)


def _not_copied(detail: str) -> Unusable:
    return Unusable(Fault.ARTIFACT_FETCH_FAILED, "the result could not be copied", detail)


def _copy_all(
    parts: Parts, held: Job, channel: Channel, provider: Provider, done: Done
) -> tuple[list[NewArtifact], Unusable | None]:
    """What is usable, and why something is not. Raises NotNow."""
    pcm = held.kind == "speech" and held.parameters.get("format") == "pcm"
    kept: list[NewArtifact] = []
    why: Unusable | None = None
    if done.outputs and not ordered(held, done):
        why = Unusable(Fault.ARTIFACT_INVALID, f"the result is no {held.kind}")
    for output in ordered(held, done):
        try:
            kept.append(copy(parts, channel, provider, output, pcm=pcm))
        except Unusable as ex:
            why = ex
    return kept, why


def ordered(held: Job, done: Done) -> list[Output]:
    """Those outputs that are what was asked for; a film's picture or sound beside it is not."""
    return [each for each in done.outputs if each.kind in MADE[held.kind]]


def copy(
    parts: Parts, channel: Channel, provider: Provider, output: Output, *, pcm: bool = False
) -> NewArtifact:
    """One output, checked and stored; `pcm`: it is raw samples, which have no mark.
    Raises Unusable, NotNow."""
    limit = parts.config.artifacts.max_bytes
    try:
        if output.url:
            draft = _fetch(parts, channel, provider, output, limit)
        else:
            draft = parts.store.receive(chunks_of(output.data), limit)
    except TooLarge as ex:
        raise Unusable(Fault.ARTIFACT_INVALID, f"the result is larger than {limit} bytes") from ex
    except StoreUnavailable as ex:
        raise NotNow(str(ex)) from ex
    try:
        facts = _facts(output, draft, pcm)
        crash_point("batch.artifact.received")
        parts.store.keep(draft)
    except StoreUnavailable as ex:
        raise NotNow(str(ex)) from ex
    finally:
        parts.store.drop(draft)
    return facts


def _fetch(parts: Parts, channel: Channel, provider: Provider, output: Output, limit: int) -> Draft:
    own = urlsplit(output.url)[:2] == urlsplit(channel.base_url)[:2]
    headers = provider.headers(channel) if output.authorized and own else {}
    try:
        with parts.fetcher.get(
            output.url,
            headers=headers,
            limit_bytes=limit,
            deadline_s=channel.total_timeout_s,
            trusted=channel.base_url,
        ) as got:
            if got.status in _GONE:
                message = f"the result's link answered {got.status}"
                raise Unusable(Fault.ARTIFACT_FETCH_FAILED, message)
            if got.status != 200:
                raise NotNow(f"the result's link answered {got.status}")
            return parts.store.receive(got.chunks(), limit)
    except FetchRefused as ex:
        raise _not_copied(str(ex)) from ex
    except FetchFailed as ex:
        raise NotNow(str(ex)) from ex


def _facts(output: Output, draft: Draft, pcm: bool) -> NewArtifact:
    """What the bytes are. Raises Unusable, StoreUnavailable."""
    if output.kind in ("text", "json"):
        return _text(output, draft)
    try:
        with open(draft.path, "rb") as file:
            found = inspect_pcm(draft.size) if pcm else inspect(file, draft.size)
    except ArtifactInvalid as ex:
        raise Unusable(Fault.ARTIFACT_INVALID, f"the result is no {output.kind}: {ex}") from ex
    except OSError as ex:
        raise StoreUnavailable(str(ex)) from ex
    if found.kind != output.kind:
        message = f"the result is {found.mime}, not {output.kind}"
        raise Unusable(Fault.ARTIFACT_INVALID, message)
    return NewArtifact(
        found.kind,
        found.mime,
        draft.size,
        draft.sha256,
        found.width,
        found.height,
        found.duration_ms,
    )


def _text(output: Output, draft: Draft) -> NewArtifact:
    try:
        text = output.data.decode()
        if output.kind == "json":
            msgspec.json.decode(output.data)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as ex:
        raise Unusable(Fault.ARTIFACT_INVALID, f"the result is no {output.kind}") from ex
    if not text:
        raise Unusable(Fault.ARTIFACT_INVALID, "the result is empty")
    mime = "application/json" if output.kind == "json" else "text/plain; charset=utf-8"
    return NewArtifact(output.kind, mime, draft.size, draft.sha256, None, None, None)
