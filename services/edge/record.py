"""Writes a request's events and moves its money: the hold in, the charge and the rest out.

Order, so that a kill at any point bills nothing wrong: `request` durable, upstream call, terminal
durable, last bytes to the client."""

import re
from collections import OrderedDict
from typing import Any, Final

import msgspec

from schemas.errors import Code, Outcome, Stage
from schemas.events import Error, LeaseClosed, Request, Usage
from services.backends import telemetry
from services.backends.clock import Clock
from services.backends.lifecycle import crash_point
from services.core.errors import Refusal
from services.core.ids import new_id
from services.core.outcomes import PPM, Ending, Verdict, judge, refused
from services.core.rates import tokens_used
from services.core.rating import Rated, Unpriced, rate
from services.core.usage import INFO
from services.edge.counters import Counters
from services.edge.elastic import HoldPolicy
from services.edge.exchange import Exchange
from services.edge.journal import Journal
from services.edge.lease import Lease, Reservation
from services.edge.leases import LeaseBook
from services.edge.rates import RETURN_WAIT_S

log = telemetry.get_logger()

SOURCE: Final = "edge"
SESSIONS_MAX: Final = 10_000
_ERROR_TYPE: Final = re.compile(r"[a-z_]{1,48}")
_INPUT_CLASSES: Final = ("input", "cache_read", "cache_write_5m", "cache_write_1h")


class Recorder:
    """One per worker, over its journal and leases."""

    def __init__(
        self, journal: Journal, clock: Clock, counters: Counters, holds: HoldPolicy
    ) -> None:
        self._holds = holds
        self._journal = journal
        self._clock = clock
        self._counters = counters
        self.leases: LeaseBook | None = None
        self._shares: OrderedDict[tuple[str, str], int] = OrderedDict()  # by account, session

    def request(self, x: Exchange, reservation: Reservation) -> None:
        """The request is admitted: durable before the upstream is called.

        Raises what `Outbox.append` raises; the caller then ends the hold."""
        assert x.key is not None
        assert x.parsed is not None
        assert x.view is not None
        lease = reservation.lease
        event = Request(
            event_id=f"{x.request_id}:request",
            account_id=lease.account_id,
            key_id=lease.key_id,
            occurred_at=x.started_us,
            source=SOURCE,
            request_id=x.request_id,
            lease_id=lease.id,
            lease_seq=lease.next_seq(),
            dialect=x.dialect.name,
            path=storable(x.path[:1024]),
            model=storable(x.parsed.model),
            group=x.key.group,
            price_version=x.view.prices.id,
            hold_nano=reservation.hold_nano,
            stream=x.parsed.stream,
            session_id=storable(x.parsed.session_id),
            agent_id=storable(x.parsed.agent_id),
            client=x.client,
            tags=x.tags,
            body_bytes=len(x.body),
        )
        crash_point("edge.before_request")
        self._journal.append(event)
        lease.events += 1
        x.requested = True
        waited_s = self._clock.monotonic_s() - x.started_s
        self._counters.observe("tollgate_overhead_seconds", waited_s)
        crash_point("edge.after_request")

    def end(
        self, x: Exchange, ending: Ending, status: int, message: str = "", code: Code | None = None
    ) -> Verdict | None:
        """Judges how the request ended, writes its terminal event, once, then moves the money.
        `status` is what the client got, `code` says more than the judgement when it is free.

        Returns the verdict, None when the request has its terminal already. Raises what
        `Outbox.append_last` raises."""
        if x.terminated or not x.requested:
            return None
        assert x.reservation is not None
        assert self.leases is not None
        verdict = self._judged(x, ending, code)
        rated = self._rated(x, verdict)
        if verdict.billed and rated is None:
            log.error("usage_without_price", request_id=x.request_id, usage=verdict.usage)
            verdict = self._priced_part(x, verdict)
            rated = self._rated(x, verdict)
        charged_nano = 0
        if verdict.billed:
            assert rated is not None
            charged_nano = min(rated.cost_nano, x.reservation.hold_nano)
            if not verdict.estimated:
                charged_nano = self.leases.charge(x.reservation, rated.cost_nano)
        if x.terminated:  # charge() may wait; another path may have ended it meanwhile
            return None
        x.terminated = True  # before the append, which waits: nobody else may end it meanwhile
        event = self._terminal(x, verdict, rated, charged_nano, status, message)
        crash_point("edge.before_terminal")
        self._journal.append_last(event)
        x.reservation.lease.events += 1
        crash_point("edge.after_terminal")
        self.leases.settle(x.reservation, charged_nano)
        if x.permit is not None:  # back before the client has its last byte and comes again
            used = tokens_used(event.usage) if isinstance(event, Usage) else None
            x.permit.end(used, RETURN_WAIT_S)
        self._count(x, event)
        return verdict

    def _judged(self, x: Exchange, ending: Ending, code: Code | None) -> Verdict:
        assert x.parsed is not None
        verdict = judge(
            ending,
            status=x.upstream_status,
            answer=x.answer,
            streaming=x.parsed.stream,
            relayed=x.relayed,
            text_bytes=x.parsed.shape.text_bytes,
            cache_share_ppm=self._shares.get(_session(x), 0),
            wants_output=x.parsed.max_output_tokens != 0,
        )
        if verdict.billed and not verdict.estimated:
            self._learn_share(_session(x), verdict.usage)
        if code is None or verdict.billed:
            return verdict
        stage = Stage.ROUTING if code is Code.NO_CAPACITY else verdict.stage
        return msgspec.structs.replace(verdict, code=code, stage=stage)

    def _priced_part(self, x: Exchange, verdict: Verdict) -> Verdict:
        """What has a price is due. What has none (searches, where the operator's prices name none)
        is neither billed by a guess nor makes the rest free."""
        units = verdict.usage.items()
        usage = {name: n for name, n in units if self._rate(x, {name: n}) is not None}
        if usage.keys() <= set(INFO):
            return Verdict(
                outcome=Outcome.FAILED, code=Code.MODEL_WITHOUT_PRICE, stage=Stage.GATEWAY
            )
        return msgspec.structs.replace(verdict, usage=usage)

    def _count(self, x: Exchange, event: Usage | Error) -> None:
        code = event.code if isinstance(event, Error) else ""
        counters = self._counters
        counters.add("tollgate_requests_total", x.dialect.name, event.outcome, code)
        if event.outcome == Outcome.FAILED:
            _tell(event)
        for attempt in event.attempts:
            counters.add("tollgate_attempts_total", attempt.channel, str(attempt.status))
        if x.ttfb_s:
            counters.observe("tollgate_first_byte_seconds", x.ttfb_s, x.dialect.name)
        if isinstance(event, Usage):
            self._holds.ended(event)
            self._count_money(x, event)

    def _count_money(self, x: Exchange, event: Usage) -> None:
        counters = self._counters
        counters.add("tollgate_charged_nano_total", amount=event.charged_nano)
        if event.written_off_nano:
            counters.add("tollgate_written_off_nano_total", amount=event.written_off_nano)
        if x.bound is not None and event.cost_nano > x.bound.whole_nano:
            counters.add("tollgate_quota_worst_case_exceeded_total")
        if event.charged_nano:
            ratio = event.hold_nano / event.charged_nano
            counters.observe("tollgate_reserve_to_actual_ratio", ratio)

    def refused(self, x: Exchange, refusal: Refusal, status: int) -> None:
        """A refusal of a known key, sent with `status`: an error event of its own, without a
        request before it."""
        self._counters.add("tollgate_refusals_total", refusal.code)
        if x.key is None or x.requested:
            return
        verdict = refused(refusal.code)
        self._journal.append(self._terminal(x, verdict, None, 0, status, refusal.message))

    def lease_closed(self, lease: Lease) -> None:
        """No event of the lease follows."""
        self._journal.append_last(
            LeaseClosed(
                event_id=f"{lease.id}:lease_closed",
                account_id=lease.account_id,
                key_id=lease.key_id,
                occurred_at=self._clock.now_us(),
                source=SOURCE,
                lease_id=lease.id,
                events=lease.events,
            )
        )

    def _learn_share(self, session: tuple[str, str], usage: dict[str, int]) -> None:
        """What part of the session's input came from the cache, for an estimate later on."""
        cached = usage.get("cache_read", 0)
        if not session[1] or not cached:
            return
        total = sum(usage.get(name, 0) for name in _INPUT_CLASSES)
        self._shares[session] = cached * PPM // total
        self._shares.move_to_end(session)
        if len(self._shares) > SESSIONS_MAX:
            self._shares.popitem(last=False)

    def _rated(self, x: Exchange, verdict: Verdict) -> Rated | None:
        """What the customer owes, or for a free ending what the provider told it used: its cost
        is ours."""
        usage = verdict.usage if verdict.billed else (x.answer.usage if x.answer else None)
        return self._rate(x, usage) if usage else None

    @staticmethod
    def _rate(x: Exchange, usage: dict[str, int]) -> Rated | None:
        """None when something of it has no price."""
        if x.view is None or x.price is None or x.key is None:
            return None
        try:
            return rate(
                x.view.prices.book,
                channel=x.channel.name if x.channel else "",
                priced_as=x.price.model,
                group=x.key.group,
                usage=usage,
                tier=x.tier,
            )
        except Unpriced:
            return None

    def _terminal(
        self,
        x: Exchange,
        verdict: Verdict,
        rated: Rated | None,
        charged_nano: int,
        status: int,
        message: str,
    ) -> Usage | Error:
        assert x.key is not None
        lease = x.reservation.lease if x.reservation is not None and x.requested else None
        now_us = self._clock.now_us()
        common: dict[str, Any] = {
            "account_id": x.key.account_id,
            "key_id": x.key.id,
            "occurred_at": now_us,
            "source": SOURCE,
            "request_id": x.request_id,
            "lease_id": lease.id if lease else "",
            "lease_seq": lease.next_seq() if lease else 0,
            "status": status,
            "outcome": verdict.outcome,
            "dialect": x.dialect.name,
            "path": storable(x.path[:1024]),
            "model": storable(x.parsed.model) if x.parsed else "",
            "priced_as": x.price.model if x.price else "",
            "upstream_model": x.upstream_model,
            "channel": x.channel.name if x.channel else "",
            "group": x.key.group,
            "price_version": x.view.prices.id if x.view else "",
            "stream": x.parsed.stream if x.parsed else False,
            "session_id": storable(x.parsed.session_id) if x.parsed else "",
            "agent_id": storable(x.parsed.agent_id) if x.parsed else "",
            "client": x.client,
            "tags": x.tags,
            "hold_nano": x.reservation.hold_nano if x.reservation else 0,
            "ttfb_ms": round(x.ttfb_s * 1000),
            "total_ms": max(now_us - x.started_us, 0) // 1000,
            "attempts": x.attempts,
            "upstream_request_id": x.upstream_request_id,
        }
        if verdict.billed:
            assert rated is not None
            return Usage(
                event_id=f"{x.request_id}:usage",
                usage=verdict.usage,
                multiplier_ppm=rated.multiplier_ppm,
                cost_nano=rated.cost_nano,
                charged_nano=charged_nano,
                written_off_nano=rated.cost_nano - charged_nano,
                provider_cost_nano=rated.provider_cost_nano,
                tier=x.tier,
                estimated=verdict.estimated,
                **common,
            )
        return Error(
            event_id=f"{x.request_id}:error",
            code=verdict.code or Code.INTERNAL_ERROR,
            stage=verdict.stage or Stage.GATEWAY,
            message=storable(message[:1024]),
            provider_cost_nano=rated.provider_cost_nano if rated else 0,
            **common,
        )


def _tell(event: Usage | Error) -> None:
    """What an operator looks for when a client asks why: by the id that the client was given."""
    log.info(
        "request_not_answered",
        request_id=event.request_id,
        account_id=event.account_id,
        key_id=event.key_id,
        model=event.model,
        channel=event.channel,
        status=event.status,
        code=event.code if isinstance(event, Error) else "",
        upstream_request_id=event.upstream_request_id,
    )


def storable(text: str) -> str:
    """A text that clients or upstreams wrote, without NUL: PostgreSQL stores none, and an event
    that cannot be stored would be a request that nobody pays for."""
    return text.replace("\0", "\ufffd")


def upstream_error_note(kind: str) -> str:
    """What an event says of an error that an upstream told in its answer: its type. Its message
    may quote the prompt, which no event holds."""
    return f"the upstream told {kind if _ERROR_TYPE.fullmatch(kind) else 'an error'}"


def new_incarnation() -> str:
    """The id of one run of one edge worker."""
    return new_id("edge").replace("_", "-", 1)


def _session(x: Exchange) -> tuple[str, str]:
    """Clients choose the names of their sessions: they are each account's own."""
    assert x.key is not None
    assert x.parsed is not None
    return x.key.account_id, x.parsed.session_id
