"""docs/metrics.md and schemas/metrics.py agree, and every metric is recorded somewhere."""

import re
from pathlib import Path

import pytest

from schemas.metrics import METRICS

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "metrics.md").read_text("utf-8")
ALERTS = (ROOT / "docs" / "alerts.yaml").read_text("utf-8")
ROW = re.compile(
    r"^\| `(tollgate_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \| ([^|]*) \|$", re.MULTILINE
)
SOURCES = {
    path: path.read_text("utf-8") for path in (ROOT / "services").rglob("*.py")
}  # fmt: skip


def test_the_page_is_the_declaration():
    told = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _, _ in ROW.findall(TEXT)
    ]
    assert told == [(metric.name, metric.kind, metric.labels) for metric in METRICS]
    assert len(told) == TEXT.count("| `tollgate_")


@pytest.mark.parametrize("name", [metric.name for metric in METRICS])
def test_a_metric_is_recorded(name):
    assert any(f'"{name}"' in text for text in SOURCES.values())


def test_only_declared_names_are_recorded():
    names = {metric.name for metric in METRICS}
    for path, text in SOURCES.items():
        for used in re.findall(r'(?:metric|add|observe|Observations)\(\s*"(tollgate_\w+)"', text):
            assert used in names, f"{path.name}: {used}"


def test_a_page_has_its_rule():
    """What the table says to page on is in a rule of that severity."""
    rules = ALERTS.split("- alert: ")[1:]
    paging = "\n".join(rule for rule in rules if "severity: page" in rule)
    for name, _, _, _, page in ROW.findall(TEXT):
        if page.strip() and "warn" not in page:
            assert name in paging, name
