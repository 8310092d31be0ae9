"""From the queue to the upstream, and what to do when nobody knows whether it arrived.

The attempt is committed before the create is sent. A create whose fate is unclear is looked up by
its client reference; it is sent again only when it is proved absent, or when the provider makes
nothing new for the same reference.
"""

from typing import Final

from services.backends.lifecycle import crash_point
from services.backends.objects.port import NotStored, StoreUnavailable
from services.backends.sql.job_ends import CANCELLED, Free
from services.backends.sql.job_records import Attempt, Job
from services.batch.deliver import deliver_now
from services.batch.inputs import InputAway, InputMissing, files_of
from services.batch.insist import insist
from services.batch.parts import Parts
from services.batch.providers.port import (
    Absent,
    Done,
    Later,
    NotSent,
    Order,
    Provider,
    Refused,
    Submitted,
    Unsupported,
)
from services.batch.settle import expected_cost_nano
from services.core.catalog import Channel
from services.core.jobs import AttemptState, Fault, Phase, next_poll_s
from services.core.upstream_words import client_text

_WAIT_S: Final = 1.0
_NOT_SENT_MAX_S: Final = 30.0
_INPUT_TRIES: Final = 5
_LOOK_MAX_S: Final = 30.0
_CONFLICT: Final = 409
_PASSING: Final = (408, 425, 429, 503)  # refusals of the moment: the same channel may take it later


def from_queue(parts: Parts, held: Job) -> None:
    """A job in the queue has its turn."""
    if held.cancel_at is not None:  # asked for while an attempt was sent that made nothing
        parts.ends.free(held, CANCELLED)
        return
    view = parts.views.view()
    serving = [
        each
        for each in view.serving(held.group_name, held.priced_as)
        if held.kind in _kinds(parts, each)
    ]
    tried = {
        each.channel
        for each in (parts.jobs.attempts(held.id) if held.attempt_no else [])
        if each.state == AttemptState.REFUSED and each.status not in _PASSING
    }
    left = [each for each in serving if each.name not in tried]
    if not left:
        message = "no upstream takes it" if serving else f"nobody makes {held.priced_as} now"
        parts.ends.free(held, Free(Phase.FAILED, Fault.NO_CAPACITY, message))
        return
    ready = [each for each in left if parts.cooldowns.ready(each.name)]
    if not ready:
        parts.claims.later(held, _WAIT_S)
        return
    channel = next((each for each in ready if parts.lanes.has_room(each.name)), ready[0])
    with parts.lanes.step(channel.name) as taken:
        if taken:
            _begin(parts, held, channel)
        elif len(left) == 1:
            parts.claims.later(held, 0.0, channel=channel.name)  # due when it has room
        else:
            parts.claims.later(held, _WAIT_S)


def _begin(parts: Parts, held: Job, channel: Channel) -> None:
    began = parts.claims.begin_attempt(
        held,
        channel.name,
        channel.models[held.priced_as],
        account_max=parts.config.batch.account_concurrency,
        channel_max=channel.max_concurrency,
    )
    if began is not None:
        crash_point("batch.attempt.committed")
        send(parts, *began, channel, parts.providers[channel.provider])


def send(parts: Parts, held: Job, tried: Attempt, channel: Channel, provider: Provider) -> None:
    """The create call of a committed attempt, and where it leads."""
    try:
        files = files_of(parts, held, takes_urls=provider.traits.takes_urls)
    except (InputMissing, InputAway, StoreUnavailable, NotStored) as ex:
        _without_inputs(parts, held, tried, ex)
        return
    answer = provider.create(parts.http, channel, _order(held, tried, files))
    crash_point("batch.create.answered")
    if isinstance(answer, Submitted):
        parts.cooldowns.ok(channel.name)
        wait_s = next_poll_s(
            0.0,
            answer.eta_s or held.eta_s,
            provider.traits.poll_min_s,
            provider.traits.poll_max_s,
            0.5,
        )
        told = answer
        insist(
            parts,
            lambda: parts.claims.taken(held, tried, told.upstream_id, told.links, wait_s),
        )
        crash_point("batch.create.persisted")
    elif isinstance(answer, Done):
        parts.cooldowns.ok(channel.name)
        now = insist(parts, lambda: parts.jobs.get(held.id))
        if now is not None and now.cancel_at is not None:
            parts.ends.free(held, _unwanted(parts, held))
        else:
            deliver_now(parts, held, channel, provider, answer)
    elif isinstance(answer, Refused):
        _refused(parts, held, tried, channel, answer)
    elif isinstance(answer, NotSent):
        parts.cooldowns.failed(channel.name, 0, None)
        wait_s = min(_NOT_SENT_MAX_S, 0.5 * 2 ** min(held.not_sent, 10))
        _not_made(parts, held, tried, AttemptState.NOT_SENT, 0, answer.message, wait_s)
    elif held.phase is Phase.UNKNOWN:
        _ask_again(parts, held, tried)
    else:
        parts.claims.unknown(held, tried, answer.status, answer.message, _WAIT_S)


def _without_inputs(parts: Parts, held: Job, tried: Attempt, ex: Exception) -> None:
    """What it needs cannot be read now, or never."""
    gone = isinstance(ex, InputMissing)
    if isinstance(ex, InputAway):
        gone = held.phase is not Phase.UNKNOWN and held.not_sent >= _INPUT_TRIES
    if gone and held.phase is Phase.UNKNOWN:
        _nobody_knows(parts, held, str(ex))
    elif gone:
        shown = client_text(str(ex), "an input could not be read")
        end = Free(
            Phase.FAILED,
            Fault.UPSTREAM_REJECTED,
            shown,
            attempt=AttemptState.NOT_SENT,
            detail=str(ex),
        )
        parts.ends.free(held, end)
    else:
        wait_s = 2.0**held.not_sent if isinstance(ex, InputAway) else _WAIT_S
        _not_made(parts, held, tried, AttemptState.NOT_SENT, 0, str(ex), wait_s)


def _not_made(
    parts: Parts,
    held: Job,
    tried: Attempt,
    state: AttemptState,
    status: int,
    message: str,
    wait_s: float,
) -> None:
    """This call made nothing: to the queue, for another attempt. One that was sent again says
    nothing about the first call of its attempt: only that same one may be sent once more."""
    if held.phase is Phase.UNKNOWN:
        _ask_again(parts, held, tried)
    else:
        parts.claims.back(held, tried, state, status, message, wait_s)


def _ask_again(parts: Parts, held: Job, tried: Attempt) -> None:
    """Nobody knows yet: looked up again, the longer it has been the later."""
    age_s = (parts.clock.now_us() - tried.sent_at) / 1e6
    parts.claims.later(held, max(_WAIT_S, min(age_s * 0.2, _LOOK_MAX_S)))


def take_over(parts: Parts, held: Job, tried: Attempt) -> None:
    """The worker that was sending it is gone: the create may have landed."""
    parts.claims.unknown(held, tried, 0, "the process ended while it was sent", 0.0)


def look_up(parts: Parts, held: Job, tried: Attempt) -> None:
    """Finds out what became of a create."""
    channel = parts.views.view().channel(tried.channel)
    provider = parts.providers.get(channel.provider) if channel is not None else None
    if channel is None or provider is None:
        parts.claims.later(held, _WAIT_S * 10)
        return
    answer = provider.find(parts.http, channel, _order(held, tried, {}))
    age_s = (parts.clock.now_us() - tried.sent_at) / 1e6
    if isinstance(answer, Submitted):
        parts.claims.taken(held, tried, answer.upstream_id, answer.links, 0.0)
    elif isinstance(answer, Absent):
        grace_s = parts.config.batch.unknown_grace_s
        if age_s < grace_s:  # it may still be on its way
            parts.claims.later(held, grace_s - age_s)
        else:
            parts.claims.back(held, tried, AttemptState.NOT_SENT, 0, "it never arrived", 0.0)
    elif isinstance(answer, Unsupported) and provider.traits.idempotent:
        send(parts, held, tried, channel, provider)
    elif isinstance(answer, Later):
        _ask_again(parts, held, tried)
    else:
        _nobody_knows(parts, held, f"no answer, and it cannot be asked: {tried.message}")


def _nobody_knows(parts: Parts, held: Job, detail: str) -> None:
    end = Free(
        Phase.FAILED,
        Fault.UPSTREAM_UNKNOWN,
        "nobody can tell whether the upstream took it; it was not sent again",
        detail=detail,
        attempt=AttemptState.LOST,
        provider_cost_nano=expected_cost_nano(parts, held),
    )
    parts.ends.free(held, end)


def _unwanted(parts: Parts, held: Job) -> Free:
    """The end of a job that was cancelled while a provider made it that cannot be stopped."""
    return Free(
        Phase.CANCELLED,
        Fault.CANCELLED_BY_USER,
        "cancelled; the provider could not be stopped",
        attempt=AttemptState.DONE,
        cancel_outcome="unsupported",
        provider_cost_nano=expected_cost_nano(parts, held),
    )


def _refused(parts: Parts, held: Job, tried: Attempt, channel: Channel, answer: Refused) -> None:
    again = held.phase is Phase.UNKNOWN and answer.status == _CONFLICT  # the first one is at work
    if not answer.another and not again:
        fault = Fault.SAFETY_BLOCKED if answer.moderated else Fault.UPSTREAM_REJECTED
        parts.ends.free(
            held,
            Free(
                Phase.FAILED,
                fault,
                client_text(answer.message, "the upstream refused the request"),
                detail=answer.message,
                attempt=AttemptState.REFUSED,
                status=answer.status,
            ),
        )
        return
    if answer.status in (401, 402, 403):
        parts.cooldowns.park(channel.name)
    elif not again:
        parts.cooldowns.failed(channel.name, answer.status, answer.retry_after_s)
    _not_made(parts, held, tried, AttemptState.REFUSED, answer.status, answer.message, 0.0)


def _kinds(parts: Parts, channel: Channel) -> tuple[str, ...]:
    provider = parts.providers.get(channel.provider)
    return provider.kinds if provider is not None else ()


def _order(held: Job, tried: Attempt, files: dict[str, bytes]) -> Order:
    return Order(
        client_ref=tried.client_ref,
        kind=held.kind,
        model=tried.upstream_model,
        params=held.parameters,
        files=files,
    )
