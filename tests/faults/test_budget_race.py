"""A few rounds of the race for one dollar: what 64 clients are charged stays within it, most of it
can be used, and few streams are cut. `python -m tests.chaos.race` runs more."""

import pytest

from tests.chaos import race

ROUNDS = 2
ARGUMENTS = ["--rounds", str(ROUNDS), "--seed", "1", "--workers", "4", "--at-once", "1"]


@pytest.mark.slow
@pytest.mark.timeout(60 + ROUNDS * 180)
@pytest.mark.parametrize("form", race.FORMS)
def test_nobody_passes_the_limit_and_few_answers_are_cut(form):
    assert race.main([*ARGUMENTS, "--form", form]) == 0
