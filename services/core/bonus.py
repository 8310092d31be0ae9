"""What a top-up earns on top of what was paid: a line of its own in the wallet."""

from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import NamedTuple, TypeAlias

from schemas.config import Bonus
from services.core.money import parse_usd

PPM = 1_000_000


class Step(NamedTuple):
    """From this amount on, this part of it."""

    from_nano: int
    ppm: int


Ladder: TypeAlias = Iterable[Step]


def steps_of(steps: Sequence[Bonus]) -> tuple[Step, ...]:
    """What a configuration says, lowest first. Raises ValueError, naming the wrong field."""
    return tuple(sorted(_step(f"bonus[{at}]", step) for at, step in enumerate(steps)))


def _step(path: str, step: Bonus) -> Step:
    try:
        from_nano = parse_usd(step.from_usd)
    except ValueError as ex:
        raise ValueError(f"{path}.from_usd: {ex}") from ex
    try:
        ppm = Decimal(step.percent) * (PPM // 100)
        whole = int(ppm) if ppm.is_finite() else -1
    except (InvalidOperation, ValueError, OverflowError) as ex:
        raise ValueError(f"{path}.percent: not a number") from ex
    if whole != ppm or not 0 <= whole <= PPM:
        raise ValueError(f"{path}.percent: write 0 to 100, with at most four decimals")
    return Step(from_nano, whole)


def bonus_nano(ladder: Ladder, amount_nano: int) -> int:
    """The bonus of a top-up by the highest step that it reaches, rounded down; 0 below them all."""
    reached = [step for step in ladder if step.from_nano <= amount_nano]
    return amount_nano * max(reached).ppm // PPM if reached else 0
