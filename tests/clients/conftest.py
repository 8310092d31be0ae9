import pytest

from tests.parts.clients import claude_code, codex
from tests.parts.stack import cluster_stack, stack

__all__ = ["claude_code", "cluster_stack", "codex", "stack"]

CLUSTER = pytest.param(
    "cluster_stack",
    id="kafka-postgres",
    marks=[pytest.mark.part("kafka"), pytest.mark.part("postgres")],
)


@pytest.fixture(params=[pytest.param("stack", id="embedded"), CLUSTER])
def each_stack(request):
    """The whole program, once on each of its foundations."""
    return request.getfixturevalue(request.param)
