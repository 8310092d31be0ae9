"""Requests per minute, tokens per minute and concurrency at one worker.

Small limits ask the centre for every request; of large ones a worker takes some in advance and
admits from memory. Whatever a worker has to say goes in rounds, one at a time: while one is under
way, what comes next gathers for the following one, so that a crowd at a limit costs one
transaction, not one each. A key without such limits never comes here."""

from collections.abc import Iterable, Sequence
from typing import Final

import gevent
from gevent.event import Event

from schemas.errors import Code
from services.backends import telemetry
from services.backends.clock import Clock
from services.backends.outbox import Sealed
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.lease_records import IncarnationNotOpen
from services.backends.sql.rates import Rates
from services.core.errors import Refusal
from services.core.rates import Failing, Kind, Rule
from services.edge.counters import Counters
from services.edge.rate_limits import Limit, Slots, Starts, Tokens
from services.edge.threads import Threads

log = telemetry.get_logger()

RETRY_S: Final = 0.05
RECALL_WAIT_S: Final = 0.5  # for slots that lie idle at other workers
RETURN_WAIT_S: Final = 1.0  # the last bytes of an answer wait so long for the centre, at most
SHRINK_S: Final = 2.0
TOKENS_FRESH_S: Final = 1.0
FORGET_S: Final = 120.0  # a limit that nobody used for longer than its minute
ROUND_MAX: Final = 256  # requests

Strict = Slots | Starts


class Permit:
    """One request's place within its limits; ended exactly once by `end`."""

    __slots__ = ("_book", "_brought", "_counted", "_slots", "_tokens", "ended")

    def __init__(
        self, book: "RateBook", slots: list[Slots], tokens: list[Tokens], brought: int
    ) -> None:
        self._book = book
        self._slots = slots
        self._tokens = tokens
        self._brought = brought  # tokens of input, about
        self._counted = 0
        self.ended = False
        self._count(brought)

    @property
    def counts_tokens(self) -> bool:
        return bool(self._tokens) and not self.ended

    def flowed(self, tokens: int) -> None:
        """So many tokens of output came up to now."""
        self._count(max(self._counted, self._brought + tokens))

    def _count(self, tokens: int) -> None:
        for limit in self._tokens:
            limit.add(tokens - self._counted)
        self._counted = tokens

    def end(self, tokens: int | None = None, wait_s: float = 0.0) -> None:
        """Gives the slots back; `tokens` is what the request used in all, if that is known.
        Returns when the centre knows it, at the latest after `wait_s`."""
        if self.ended:
            return
        if tokens is not None:
            self._count(tokens)
        self.ended = True
        for slots in self._slots:
            slots.put_back()
        self._book.returned(self._slots, wait_s)


class _Ticket:
    """What one greenlet wants of a round: one each of `limits`, or only that it took place."""

    __slots__ = ("done", "error", "failing", "limits")

    def __init__(self, limits: Sequence[Strict] = ()) -> None:
        self.limits = limits
        self.done = Event()
        self.failing: list[tuple[Strict, Failing]] = []
        self.error: Exception | None = None


class RateBook:
    """Every limit of one worker that was used lately."""

    def __init__(
        self, rates: Rates, incarnation: str, threads: Threads, clock: Clock, counters: Counters
    ) -> None:
        self._rates = rates
        self._incarnation = incarnation
        self._threads = threads
        self._clock = clock
        self._counters = counters
        self._strict: dict[tuple[str, Kind], Strict] = {}
        self._tokens: dict[str, Tokens] = {}
        self._tickets: list[_Ticket] = []
        self._due: set[Limit] = set()  # they have something to tell
        self._recall: set[str] = set()
        self._round_no = 0
        self._running = False
        self._shrink_s = self._forget_s = clock.monotonic_s()

    @property
    def known(self) -> int:
        """The limits that it holds in memory."""
        return len(self._strict) + len(self._tokens)

    # -- admission ----------------------------------------------------------------------------

    def admit(self, rules: tuple[Rule, ...], tokens: int) -> Permit:
        """A place for one request that brings about `tokens` of input. Raises Refusal (429, with
        the limit that has no room); then nothing is held."""
        now_s = self._clock.monotonic_s()
        spent = [self._tokens_of(rule, now_s) for rule in rules if rule.tokens_per_min]
        if spent:
            self._check_tokens(spent, tokens)
        strict = [limit for rule in rules for limit in self._strict_of(rule, now_s)]
        if all(limit.has(now_s) for limit in strict):
            for limit in strict:
                limit.take()
        else:
            self._ask(strict)
        slots = [limit for limit in strict if isinstance(limit, Slots)]
        return Permit(self, slots, spent, tokens)

    def returned(self, slots: Iterable[Slots], wait_s: float) -> None:
        """Slots of an ended request: those of small limits go to the centre at once."""
        due = [each for each in slots if each.small]
        if not due:
            return
        self._due.update(due)
        ticket = _Ticket()
        self._submit(ticket)
        if wait_s:
            ticket.done.wait(wait_s)

    def headers(self, rules: tuple[Rule, ...]) -> list[tuple[str, str]]:
        """The `x-ratelimit-*-requests` and `-tokens` families, of the limit with the least left,
        as far as this worker knows it."""
        now_s = self._clock.monotonic_s()
        starts = [self._strict.get((rule.subject, Kind.REQUESTS)) for rule in rules]
        tokens = [self._tokens.get(rule.subject) for rule in rules]
        families = {
            "requests": [each.figures(now_s) for each in starts if isinstance(each, Starts)],
            "tokens": [each.figures(now_s) for each in tokens if each is not None],
        }
        out: list[tuple[str, str]] = []
        for name, figures in families.items():
            if figures:
                limit, left, room_s = min(figures, key=lambda each: each[1])
                out.append((f"x-ratelimit-limit-{name}", str(limit)))
                out.append((f"x-ratelimit-remaining-{name}", str(left)))
                out.append((f"x-ratelimit-reset-{name}", f"{room_s}s"))
        return out

    def _strict_of(self, rule: Rule, now_s: float) -> list[Strict]:
        out: list[Strict] = []
        for kind, most, made in (
            (Kind.CONCURRENCY, rule.concurrency, Slots),
            (Kind.REQUESTS, rule.requests_per_min, Starts),
        ):
            if most:
                limit = self._strict.get((rule.subject, kind))
                if limit is None:
                    limit = self._strict[rule.subject, kind] = made(rule.subject, rule.whose)
                limit.met(most, now_s)
                out.append(limit)
        return out

    def _tokens_of(self, rule: Rule, now_s: float) -> Tokens:
        limit = self._tokens.get(rule.subject)
        if limit is None:
            limit = self._tokens[rule.subject] = Tokens(rule.subject, rule.whose)
        limit.met(rule.tokens_per_min, now_s)
        return limit

    def _check_tokens(self, limits: list[Tokens], tokens: int) -> None:
        now_s = self._clock.monotonic_s()
        stale = [limit for limit in limits if now_s - limit.told_s > TOKENS_FRESH_S]
        if stale:
            self._due.update(stale)
            self._wait(_Ticket())
            now_s = self._clock.monotonic_s()
        for limit in limits:
            if not limit.fits(tokens, now_s):
                raise self._denied(limit.kind, limit.refusal(tokens, now_s))

    def _ask(self, limits: Sequence[Strict]) -> None:
        """One each of the limits from the centre, or Refusal. Where other workers may have some
        in advance, these are recalled and waited for."""
        now_s = self._clock.monotonic_s()
        denied = [(each, each.denied) for each in limits if each.denied_until_s > now_s]
        if denied:
            raise self._refused([(limit, why) for limit, why in denied if why is not None])
        deadline_s = now_s + RECALL_WAIT_S
        while True:
            ticket = _Ticket(limits)
            self._wait(ticket)
            if not ticket.failing:
                return
            now_s = self._clock.monotonic_s()
            waits = all(limit.may_be_idle_elsewhere(now_s) for limit, _ in ticket.failing)
            if not waits or now_s >= deadline_s:
                for limit, why in ticket.failing:
                    limit.deny(why, now_s)
                raise self._refused(ticket.failing)
            self._recall.update(limit.subject for limit, _ in ticket.failing)
            gevent.sleep(RETRY_S)

    def _refused(self, failing: Sequence[tuple[Strict, Failing]]) -> Refusal:
        """Of several limits the one whose end is known is named: it takes longer."""
        limit, why = min(failing, key=lambda each: each[0].kind is Kind.CONCURRENCY)
        return self._denied(limit.kind, limit.refusal(why))

    def _denied(self, kind: Kind, ex: Refusal) -> Refusal:
        self._counters.add("tollgate_quota_denied_total", kind)
        return ex

    # -- rounds -------------------------------------------------------------------------------

    def _wait(self, ticket: _Ticket) -> None:
        self._submit(ticket)
        ticket.done.wait()
        if ticket.error is not None:
            raise ticket.error

    def _submit(self, ticket: _Ticket) -> None:
        self._tickets.append(ticket)
        if not self._running:
            self._running = True
            gevent.spawn(self._run)

    def _run(self) -> None:
        while self._tickets:
            tickets = self._tickets[:ROUND_MAX]
            del self._tickets[:ROUND_MAX]
            error: Exception | None = None
            try:
                self._round(tickets)
            except IncarnationNotOpen:
                error = Sealed(self._incarnation)
            except DatabaseUnavailable:
                error = Refusal(Code.UNAVAILABLE, "limits cannot be read now; try again")
            except Exception as ex:
                log.exception("rates_failed")
                error = ex
            self._counters.add("tollgate_rate_rounds_total", "failed" if error else "answered")
            for ticket in tickets:
                ticket.error = error
                ticket.done.set()
        self._running = False

    def _round(self, tickets: list[_Ticket]) -> None:
        """One transaction at the centre."""
        now_s = self._clock.monotonic_s()
        due, self._due = self._due, set()
        recall, self._recall = sorted(self._recall), set()
        tokens = [limit for limit in due if isinstance(limit, Tokens)]
        told = {limit.subject: limit.untold for limit in tokens}
        asked = dict.fromkeys(limit for ticket in tickets for limit in ticket.limits)
        strict = [*asked, *(each for each in due if isinstance(each, Strict) and each not in asked)]
        places = {limit: place for place, limit in enumerate(strict)}
        # Who asks for a small limit too asks every time: in advance would be of no use to it.
        advance = {
            limit
            for ticket in tickets
            if not any(each.small for each in ticket.limits)
            for limit in ticket.limits
        }
        lines = [limit.line(limit in asked, limit in advance, now_s) for limit in places]
        asks = [[places[limit] for limit in ticket.limits] for ticket in tickets]
        self._round_no += 1
        call = (self._incarnation, self._round_no, lines, asks, told, recall)
        try:
            answer = self._threads.apply(self._rates.round, call)
        except Exception:
            self._due |= due | places.keys()  # it may have taken place or not: told again
            raise
        granted = dict.fromkeys(places, 0)
        limits = list(places)
        for ticket, failing in zip(tickets, answer.ruling.failing, strict=True):
            ticket.failing = [(limits[each.line], each) for each in failing]
            for limit in () if failing else ticket.limits:
                granted[limit] += 1
        for limit, taken in zip(limits, answer.ruling.taken, strict=True):
            limit.answered(taken, granted[limit], now_s)
        for spent in tokens:
            counts = answer.tokens[spent.subject]
            spent.learned(counts, told[spent.subject], answer.now_us, now_s)

    # -- upkeep: one step of the worker's poll ------------------------------------------------

    def poll(self) -> None:
        """Gives back what is idle, over or recalled, tells tokens, forgets what is not used."""
        now_s = self._clock.monotonic_s()
        idle = [limit for limit in self._strict.values() if limit.has(now_s)]
        if idle:
            subjects = sorted({limit.subject for limit in idle})
            recalled = self._threads.apply(self._rates.recalled, (subjects,))
            for limit in idle:
                if limit.subject in recalled:
                    limit.recall(now_s)
                    self._due.add(limit)
        if now_s - self._shrink_s >= SHRINK_S:
            self._shrink_s = now_s
            self._due.update([limit for limit in idle if limit.shrink()])
        self._due.update(limit for limit in self._strict.values() if limit.is_due(now_s))
        self._due.update(limit for limit in self._tokens.values() if limit.is_due(now_s))
        if self._due:
            self._wait(_Ticket())
        if now_s - self._forget_s >= FORGET_S:
            self._forget_s = now_s
            self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        def kept(limit: Limit) -> bool:
            return limit.busy or limit in self._due or now_s - limit.used_s < FORGET_S

        self._strict = {name: each for name, each in self._strict.items() if kept(each)}
        self._tokens = {name: each for name, each in self._tokens.items() if kept(each)}

    def close(self) -> None:
        """At the end of the worker, after the last request: everything goes back."""
        for limit in self._strict.values():
            limit.recall(self._clock.monotonic_s())
        self._due.update(self._strict.values())
        self._due.update(self._tokens.values())
        if self._due:
            self._wait(_Ticket())
