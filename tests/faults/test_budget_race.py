"""A few rounds of the race for one dollar: what 64 clients are charged stays within it, most of it
can be used, and few streams are cut. `python -m tests.chaos.race` runs more."""

import pytest

from tests.chaos.installation import Installation
from tests.chaos.race import FORMS, USABLE_MIN, judge, race, summary

ROUNDS = 2
SEED = 1


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    running = Installation(tmp_path_factory.mktemp("race"), {"edge": {"workers": 4}})
    try:
        running.start()
        yield running
        told = running.reconcile()
        assert told.exit_code == 0, told.text()
    finally:
        running.stop()


@pytest.mark.slow
@pytest.mark.timeout(60 + ROUNDS * 180)
@pytest.mark.parametrize("form", FORMS)
def test_nobody_passes_the_limit_and_few_answers_are_cut(program, form):
    rounds = list(race(program, [form], ROUNDS, SEED))
    print(summary(rounds))
    assert judge(rounds) == []
    assert sum(each.usable for each in rounds) >= USABLE_MIN * ROUNDS
