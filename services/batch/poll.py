"""Follows a generation at its upstream, and ends it when asked to.

Trouble of the transport is never a verdict, nor is a word that nobody knows; an upstream that
denies the generation three times over a minute has lost it.
"""

import random
from typing import Final

import msgspec

from services.backends.lifecycle import crash_point
from services.backends.sql.job_ends import Free
from services.backends.sql.job_records import Attempt, Job
from services.backends.telemetry import get_logger, metric
from services.batch.deliver import deliver
from services.batch.parts import Parts
from services.batch.providers.port import (
    Cancelled,
    Done,
    Failed,
    Gone,
    Later,
    Provider,
    Running,
    Task,
    Unsupported,
)
from services.batch.settle import expected_cost_nano
from services.core.catalog import Channel
from services.core.jobs import AttemptState, Fault, Phase, next_poll_s
from services.core.upstream_words import client_text

_GONE_TIMES: Final = 3
_AGAIN_S: Final = 2.0
_AWAY_S: Final = 5.0
_TOO_OFTEN: Final = 429
_REST_MAX_S: Final = 30.0
_WISH_MAX_S: Final = 300.0  # of an upstream, to be left alone: its results do not wait for ever


def poll(parts: Parts, held: Job, tried: Attempt) -> None:
    """One look at a generation that the upstream has, also one whose results are being copied."""
    channel = parts.views.view().channel(tried.channel)
    provider = parts.providers.get(channel.provider) if channel is not None else None
    if channel is None or provider is None:
        parts.claims.later(held, _AWAY_S)  # the operator may bring it back
        return
    task = task_of(held, tried)
    asked = held.cancel_at is not None and held.phase is Phase.POLLING  # else it is too late
    if asked and _cancel(parts, held, channel, provider, task):
        return
    answer = provider.poll(parts.http, channel, task)
    crash_point("batch.poll.answered")
    if isinstance(answer, Done):
        if held.phase is Phase.POLLING:
            held = parts.claims.fetching(held)
        crash_point("batch.fetching.committed")
        deliver(parts, held, tried, channel, provider, answer)
    elif isinstance(answer, Failed):
        _failed(parts, held, answer)
    elif isinstance(answer, Gone):
        _gone(parts, held, tried)
    elif isinstance(answer, Later):
        wait_s = max(_AGAIN_S, _pace_s(parts, held, tried, provider))
        if answer.retry_after_s:
            wait_s = min(answer.retry_after_s, _WISH_MAX_S)
        if answer.status == _TOO_OFTEN:  # it is not about this generation
            parts.lanes.rest(channel.name, min(answer.retry_after_s or _AGAIN_S, _REST_MAX_S))
        parts.claims.polled(
            held, tried, wait_s, status=answer.status, message=answer.message, gone=0
        )
    else:
        _running(parts, held, tried, provider, answer)


def _running(parts: Parts, held: Job, tried: Attempt, provider: Provider, answer: Running) -> None:
    if answer.word:
        metric("tollgate_unknown_state_total").labels(provider.name).inc()
        get_logger().warning("unknown_upstream_state", provider=provider.name, word=answer.word)
    wait_s = _pace_s(parts, held, tried, provider)
    parts.claims.polled(held, tried, wait_s, status=200, progress_ppm=answer.progress_ppm)


def _pace_s(parts: Parts, held: Job, tried: Attempt, provider: Provider) -> float:
    """Seconds until the next look."""
    age_s = (parts.clock.now_us() - (tried.taken_at or tried.sent_at)) / 1e6
    traits = provider.traits
    return next_poll_s(age_s, held.eta_s, traits.poll_min_s, traits.poll_max_s, random.random())


def _failed(parts: Parts, held: Job, answer: Failed) -> None:
    if answer.cancelled and held.cancel_at is not None:
        end = Free(
            Phase.CANCELLED,
            Fault.CANCELLED_BY_USER,
            "cancelled",
            attempt=AttemptState.CANCELLED,
            cancel_outcome="confirmed",
        )
    else:
        fault = Fault.SAFETY_BLOCKED if answer.moderated else Fault.UPSTREAM_FAILED
        message = f"{answer.code}: {answer.message}" if answer.code else answer.message
        shown = client_text(message, "the upstream could not make it")
        end = Free(Phase.FAILED, fault, shown, attempt=AttemptState.FAILED, detail=message)
    parts.ends.free(held, end)


def _gone(parts: Parts, held: Job, tried: Attempt) -> None:
    since_us = parts.clock.now_us() - (tried.gone_at or parts.clock.now_us())
    if tried.gone + 1 >= _GONE_TIMES and since_us >= parts.config.batch.gone_s * 1_000_000:
        end = Free(
            Phase.FAILED,
            Fault.UPSTREAM_UNKNOWN,
            "the upstream does not know it any more",
            attempt=AttemptState.LOST,
            provider_cost_nano=expected_cost_nano(parts, held),
        )
        parts.ends.free(held, end)
        return
    wait_s = min(parts.config.batch.gone_s / _GONE_TIMES, 20.0)
    parts.claims.polled(held, tried, wait_s, status=404, gone=tried.gone + 1)


def _cancel(parts: Parts, held: Job, channel: Channel, provider: Provider, task: Task) -> bool:
    """Asks the upstream to end it. True: the step is over."""
    answer = provider.cancel(parts.http, channel, task)
    crash_point("batch.cancel.answered")
    if isinstance(answer, Cancelled):
        end = Free(
            Phase.CANCELLED,
            Fault.CANCELLED_BY_USER,
            "cancelled",
            attempt=AttemptState.CANCELLED,
            cancel_outcome="confirmed",
        )
    elif isinstance(answer, Unsupported):  # over for the client; what it costs is ours
        end = Free(
            Phase.CANCELLED,
            Fault.CANCELLED_BY_USER,
            "cancelled; the provider could not be stopped",
            attempt=AttemptState.WATCHING,
            cancel_outcome="unsupported",
            provider_cost_nano=expected_cost_nano(parts, held),
            watch_until=watch_until(parts),
        )
    else:
        return False  # not now, or too late: the poll tells how it stands
    parts.ends.free(held, end)
    return True


def too_old(parts: Parts, held: Job, tried: Attempt | None) -> None:
    """Its deadline, or the one for its start, has passed: free, whatever the upstream does."""
    if held.phase is Phase.QUEUED or tried is None:
        late = held.start_by is not None and held.start_by < held.deadline_at
        fault = Fault.START_DEADLINE_EXCEEDED if late else Fault.DEADLINE_EXCEEDED
        parts.ends.free(held, Free(Phase.EXPIRED, fault, "it was not started in time"))
        return
    channel = parts.views.view().channel(tried.channel)
    provider = parts.providers.get(channel.provider) if channel is not None else None
    stopped = False
    with parts.lanes.step(held.channel) as taken:
        if taken and channel is not None and provider is not None and tried.upstream_id:
            answer = provider.cancel(parts.http, channel, task_of(held, tried))
            stopped = isinstance(answer, Cancelled)
    end = Free(
        Phase.FAILED,
        Fault.DEADLINE_EXCEEDED if channel is not None else Fault.PROVIDER_GONE,
        "it was not finished in time",
        attempt=AttemptState.CANCELLED if stopped else AttemptState.WATCHING,
        provider_cost_nano=0 if stopped else expected_cost_nano(parts, held),
        watch_until=None if stopped else watch_until(parts),
    )
    parts.ends.free(held, end)


def task_of(held: Job, tried: Attempt) -> Task:
    """What the adapter needs to find it again."""
    return Task(
        upstream_id=tried.upstream_id,
        client_ref=tried.client_ref,
        kind=held.kind,
        model=tried.upstream_model,
        links=msgspec.json.decode(tried.links, type=dict[str, str]),
    )


def watch_until(parts: Parts) -> int | None:
    """Until when a late result is looked for."""
    watch_s = parts.config.batch.watch_s
    return parts.clock.now_us() + watch_s * 1_000_000 if watch_s else None
