"""The bonus of a top-up: by the ladder in the data, or by the operator's own."""

from decimal import Decimal

import pytest

from schemas import config as shape
from services.backends import bonus_ladder
from services.backends.settings import ConfigError
from services.core.bonus import bonus_nano
from services.core.money import NANO_PER_USD, exact_usd, parse_usd


def bonus(ladder, usd):
    return exact_usd(bonus_nano(ladder, parse_usd(usd)))


@pytest.mark.parametrize(
    ("paid", "earned"),
    [
        ("5", "0"), ("19.999999999", "0"), ("20", "0.6"), ("99.99", "2.9997"), ("100", "5"),
        ("500", "40"), ("999.99", "79.9992"), ("1000", "112"), ("1250", "140"),
    ],
)  # fmt: skip
def test_the_built_in_ladder(paid, earned):
    assert bonus(bonus_ladder.load(shape.Config()), paid) == earned


def test_an_operators_ladder_replaces_it_whole_in_any_order():
    steps = [shape.Bonus(from_usd="50", percent="10"), shape.Bonus(from_usd="10", percent="1.5")]
    ladder = bonus_ladder.load(shape.Config(bonus=steps))
    assert [bonus(ladder, usd) for usd in ("9", "10", "49", "50")] == ["0", "0.15", "0.735", "5"]


def test_a_bonus_is_rounded_down_to_the_nano():
    ladder = bonus_ladder.load(shape.Config(bonus=[shape.Bonus(from_usd="0", percent="11.2")]))
    for nano in (1, 8, 9, 10**9 + 7, 9 * 10**9 * NANO_PER_USD):
        exact = Decimal(nano) * Decimal("0.112")
        assert 0 <= exact - bonus_nano(ladder, nano) < 1


@pytest.mark.parametrize(
    ("step", "path"),
    [
        ({"from_usd": "ten", "percent": "3"}, "bonus[0].from_usd"),
        ({"from_usd": "10", "percent": "three"}, "bonus[0].percent"),
        ({"from_usd": "10", "percent": "101"}, "bonus[0].percent"),
        ({"from_usd": "10", "percent": "-1"}, "bonus[0].percent"),
        ({"from_usd": "10", "percent": "0.00001"}, "bonus[0].percent"),
        ({"from_usd": "10", "percent": "NaN"}, "bonus[0].percent"),
    ],
)
def test_a_wrong_step_is_refused_with_its_path(step, path):
    with pytest.raises(ConfigError) as caught:
        bonus_ladder.load(shape.Config(bonus=[shape.Bonus(**step)]))
    assert path in str(caught.value)
