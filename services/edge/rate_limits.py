"""What one worker knows of one limit: slots of concurrency, starts of requests, tokens.

Memory only. `line` says what goes to the centre in a round, `answered` takes what came back. What
is given up is out of reach before it is told, so that nothing is used that the centre may have
given to another worker."""

import math
import random
from typing import Final

from schemas.errors import Code
from services.core.errors import Refusal
from services.core.rates import Failing, Kind, Line, Taken, Window, in_advance, is_small

DENY_S: Final = 0.1  # a limit that was full so lately is not asked for again: the centre is spared
DENY_STARTS_S: Final = 1.0
FRUITLESS_S: Final = 1.0  # after a recall that brought nothing
RECALLED_S: Final = 1.0  # nothing is taken in advance so long after a recall
TELL_S: Final = 0.5
RETRY_AFTER_S: Final = (1, 3)  # of a full concurrency; spread, so that not all come back at once


class Limit:
    """What every limit has. `subject` is an account, key or member; `whose` names it for people."""

    __slots__ = ("limit", "small", "subject", "used_s", "whose")
    kind: Kind

    def __init__(self, subject: str, whose: str) -> None:
        self.subject = subject
        self.whose = whose
        self.limit = 0
        self.small = False
        self.used_s = 0.0

    def met(self, limit: int, now_s: float) -> None:
        """A request counts against it, with the limit as the catalog has it now."""
        self.used_s = now_s
        if limit != self.limit:
            self.limit = limit
            self.small = is_small(self.kind, limit)

    @property
    def busy(self) -> bool:
        """It must not be forgotten."""
        return False

    def is_due(self, now_s: float) -> bool:
        """It has something to tell that nobody waits for."""
        return False


class StrictLimit(Limit):
    """Slots and starts: never passed, so each comes from the centre."""

    __slots__ = ("denied", "denied_until_s", "fruitless_s", "recalled_s", "total")

    def __init__(self, subject: str, whose: str) -> None:
        super().__init__(subject, whose)
        self.total = 0  # used at all workers, as last told
        self.denied: Failing | None = None
        self.denied_until_s = -math.inf
        self.fruitless_s = -math.inf
        self.recalled_s = -math.inf

    def met(self, limit: int, now_s: float) -> None:
        if limit != self.limit:
            self.denied_until_s = -math.inf
        super().met(limit, now_s)

    def deny(self, failing: Failing, now_s: float) -> None:
        """For a moment the same answer is given again, without asking."""
        self.denied = failing
        self.denied_until_s = now_s + min(max(failing.wait_us / 1e6, DENY_S), DENY_STARTS_S)
        self.fruitless_s = now_s

    def may_be_idle_elsewhere(self, now_s: float) -> bool:
        """Whether a recall may bring something: it did not fail a moment ago."""
        return not self.small and now_s - self.fruitless_s >= FRUITLESS_S

    def _want(self, advance: bool, now_s: float) -> int:
        recalled = now_s - self.recalled_s < RECALLED_S
        return in_advance(self.kind, self.limit) if advance and not recalled else 0

    def has(self, now_s: float) -> bool:
        """Whether one was taken in advance."""
        raise NotImplementedError

    def take(self) -> None:
        """Uses one that `has` told of."""
        raise NotImplementedError

    def line(self, asked: bool, advance: bool, now_s: float) -> Line:
        """What to tell. `asked`: a request needs one; `advance`: more may be taken with it."""
        raise NotImplementedError

    def answered(self, taken: Taken, granted: int, sent_s: float) -> None:
        """`granted` of what was taken belong to requests that asked."""
        raise NotImplementedError

    def recall(self, now_s: float) -> None:
        """Somebody else waits: nothing is to lie idle here."""
        self.recalled_s = now_s

    def shrink(self) -> bool:
        """Gives up what lay idle since the last call; whether there was any."""
        return False


class Slots(StrictLimit):
    """Requests at once. The centre counts `kept` slots for this worker; `used` of them are."""

    __slots__ = ("kept", "peak", "used")
    kind = Kind.CONCURRENCY

    def __init__(self, subject: str, whose: str) -> None:
        super().__init__(subject, whose)
        self.kept = 0
        self.used = 0
        self.peak = 0  # of `used` since the last look

    @property
    def busy(self) -> bool:
        return self.kept > 0

    def has(self, now_s: float) -> bool:
        return self.used < self.kept and not self.small

    def take(self) -> None:
        self.used += 1
        self.peak = max(self.peak, self.used)

    def put_back(self) -> None:
        self.used -= 1
        self.denied_until_s = -math.inf

    def line(self, asked: bool, advance: bool, now_s: float) -> Line:
        if asked or self.small:  # what lies idle goes first
            self.kept = self.used
        want = self._want(advance, now_s)
        return Line(self.subject, self.kind, self.limit, keep=self.kept, want=want)

    def answered(self, taken: Taken, granted: int, sent_s: float) -> None:
        self.kept += taken.n
        self.used += granted
        self.peak = max(self.peak, self.used)
        self.total = taken.used

    def recall(self, now_s: float) -> None:
        super().recall(now_s)
        self.kept = self.used

    def shrink(self) -> bool:
        unused = self.kept > max(self.peak, self.used)
        self.kept = max(self.peak, self.used)
        self.peak = self.used
        return unused

    def refusal(self, failing: Failing) -> Refusal:
        """When there will be room is not known."""
        return Refusal(
            Code.CONCURRENCY_LIMIT,
            f"concurrency_limit: {failing.used} of {self.limit} requests at once of this "
            f"{self.whose} are in flight; send the next one when one of them has ended",
            retry_after_s=random.randint(*RETRY_AFTER_S),
        )


class Starts(StrictLimit):
    """Requests per minute. `free` starts were taken in advance; they must be used by `end_s`."""

    __slots__ = ("bucket", "end_s", "free", "room_s")
    kind = Kind.REQUESTS

    def __init__(self, subject: str, whose: str) -> None:
        super().__init__(subject, whose)
        self.free = 0
        self.bucket = 0
        self.end_s = -math.inf
        self.room_s = 0.0  # when there is room again, if none is left

    @property
    def busy(self) -> bool:
        return self.free > 0

    def has(self, now_s: float) -> bool:
        return self.free > 0 and now_s < self.end_s

    def take(self) -> None:
        self.free -= 1

    def line(self, asked: bool, advance: bool, now_s: float) -> Line:
        back, self.free = self.free, 0
        want = self._want(advance, now_s)
        return Line(self.subject, self.kind, self.limit, back=back, bucket=self.bucket, want=want)

    def answered(self, taken: Taken, granted: int, sent_s: float) -> None:
        self.free = taken.n - granted
        self.bucket = taken.bucket
        self.end_s = sent_s + taken.valid_us / 1e6
        self.room_s = sent_s + taken.room_us / 1e6
        self.total = taken.used

    def deny(self, failing: Failing, now_s: float) -> None:
        super().deny(failing, now_s)
        self.total = failing.used
        self.room_s = now_s + failing.wait_us / 1e6

    def is_due(self, now_s: float) -> bool:
        return self.free > 0 and now_s >= self.end_s

    def figures(self, now_s: float) -> tuple[int, int, int]:
        """(limit, left, seconds until there is room), as far as this worker knows."""
        left = max(self.limit - self.total + self.free, 0)
        return self.limit, left, 0 if left else max(math.ceil(self.room_s - now_s), 1)

    def refusal(self, failing: Failing) -> Refusal:
        wait_s = math.ceil(failing.wait_us / 1e6)
        return Refusal(
            Code.RATE_LIMIT_EXCEEDED,
            f"rate_limit_requests exceeded: {failing.used} / {self.limit} requests per minute of "
            f"this {self.whose} used; there is room for the next one in {wait_s} s",
            retry_after_s=wait_s,
        )


class Tokens(Limit):
    """Tokens per minute: what all workers told, and what this one has not told yet. Not strict:
    others are heard of a moment later, and an answer is counted while it comes."""

    __slots__ = ("_ahead_us", "_window", "told_s", "untold")
    kind = Kind.TOKENS

    def __init__(self, subject: str, whose: str) -> None:
        super().__init__(subject, whose)
        self.untold = 0
        self.told_s = -math.inf
        self._window = Window({})
        self._ahead_us = 0  # the centre's clock before this process's

    @property
    def busy(self) -> bool:
        return self.untold != 0

    def is_due(self, now_s: float) -> bool:
        return self.untold != 0 and now_s - self.told_s >= TELL_S

    def add(self, tokens: int) -> None:
        self.untold += tokens

    def learned(self, counts: dict[int, int], told: int, centre_us: int, now_s: float) -> None:
        """The minute of all workers, with the `told` tokens of this one."""
        self.untold -= told
        self.told_s = now_s
        self._window = Window(counts)
        self._ahead_us = centre_us - int(now_s * 1e6)

    def used(self, now_s: float) -> int:
        return max(self._window.total(self._centre_us(now_s)) + self.untold, 0)

    def fits(self, tokens: int, now_s: float) -> bool:
        return self.used(now_s) + tokens <= self.limit

    def figures(self, now_s: float) -> tuple[int, int, int]:
        """(limit, left, seconds until some tokens are free again)."""
        left = max(self.limit - self.used(now_s), 0)
        return self.limit, left, 0 if left else self._wait_s(1, now_s)

    def refusal(self, tokens: int, now_s: float) -> Refusal:
        used = self.used(now_s)
        wait_s = None if tokens > self.limit else self._wait_s(tokens, now_s)
        when = f"there is room for it in {wait_s} s" if wait_s else "it never fits this limit"
        return Refusal(
            Code.RATE_LIMIT_EXCEEDED,
            f"rate_limit_tokens exceeded: {used} / {self.limit} tokens per minute of this "
            f"{self.whose} used and this request brings about {tokens}; {when}",
            retry_after_s=wait_s,
        )

    def _wait_s(self, tokens: int, now_s: float) -> int:
        over = self.used(now_s) + tokens - self.limit
        return max(math.ceil(self._window.wait_us(self._centre_us(now_s), over) / 1e6), 1)

    def _centre_us(self, now_s: float) -> int:
        return int(now_s * 1e6) + self._ahead_us
