"""When a flood of dead events stops the sink, and which sequence numbers are missing."""

import random

import pytest

from services.meter.dead import Limits
from services.meter.reconcile_seqs import Sequences


def test_single_dead_events_never_stop():
    limits = Limits(0.5, 1000)
    for _ in range(3000):
        fates = [True, False, False]
        assert limits.passed(fates) == ""
        limits.add(fates)


def test_the_ratio_counts_once_there_are_two_hundred():
    limits = Limits(0.5, 1000)
    assert limits.passed([True] * 199) == ""
    assert "200 of the last 200" in limits.passed([True] * 200)
    limits.add([False] * 2000)
    assert limits.passed([True] * 1000) == ""
    assert "1001" in limits.passed([True] * 1001)


def test_asking_changes_nothing():
    limits = Limits(1.0, 10)
    for _ in range(5):
        assert limits.passed([True] * 10) == ""
    limits.add([True] * 6)
    assert "in a row" in limits.passed([True] * 5)
    assert limits.passed([True] * 4 + [False] + [True] * 9) == ""
    limits.add([False])
    assert limits.passed([True] * 10) == ""


@pytest.mark.parametrize("count", [1, 100, 8192, 8193, 30_000])
def test_missing_numbers_are_found(count):
    rng = random.Random(count)
    numbers = list(range(1, count + 1))
    rng.shuffle(numbers)
    lost = sorted(n for n in rng.sample(numbers, min(5, count)) if n != count)
    sequences = Sequences()
    for number in numbers:
        if number not in lost:
            sequences.note("w", number)
    assert sequences.missing({}) == ({"w": lost} if lost else {})
    assert sequences.missing({"w": count + 2})["w"][-2:] == [count + 1, count + 2]
    assert sequences.missing({"w": count, "other": 2})["other"] == [1, 2]


def test_a_number_beyond_the_end_and_an_absurd_one():
    sequences = Sequences()
    for number in (1, 2, 3):
        sequences.note("w", number)
    sequences.close("w", 3)
    assert sequences.closed("w")
    assert sequences.beyond_end() == {}
    sequences.note("w", 10**15)
    assert sequences.beyond_end() == {"w": 10**15}
    assert len(sequences.missing({})["w"]) == 20
