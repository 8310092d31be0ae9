"""What a top-up earns on top of what was paid: a line of its own in the wallet."""

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

PPM = 1_000_000


class Step(NamedTuple):
    """From this amount on, this part of it."""

    from_nano: int
    ppm: int


Ladder: TypeAlias = Iterable[Step]


def bonus_nano(ladder: Ladder, amount_nano: int) -> int:
    """The bonus of a top-up by the highest step that it reaches, rounded down; 0 below them all."""
    reached = [step for step in ladder if step.from_nano <= amount_nano]
    return amount_nano * max(reached).ppm // PPM if reached else 0
