"""Alert rules speak of what exists."""

import re
from pathlib import Path

import pytest

from schemas.metrics import METRICS

ROOT = Path(__file__).parent.parent.parent
ALERTS = (ROOT / "docs" / "alerts.yaml").read_text("utf-8")
OPERATE = (ROOT / "docs" / "operate.md").read_text("utf-8")
SERIES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


def _rules() -> list[dict[str, str]]:
    """Each alert's own lines, as `name: value`."""
    rules = []
    for block in ALERTS.split("- alert: ")[1:]:
        lines = dict(re.findall(r"^\s+(\w+): (.+)$", block, re.MULTILINE))
        rules.append({"alert": block.split("\n", 1)[0], **lines})
    return rules


def _labels_of(expression: str, metric: str) -> set[str]:
    matchers = re.findall(rf"{metric}\w*\{{([^}}]*)\}}", expression)
    return {name for found in matchers for name in re.findall(r"(\w+)\s*[=!]", found)}


@pytest.mark.parametrize("rule", _rules(), ids=lambda rule: rule["alert"])
def test_rules_use_metrics_that_exist(rule):
    series = {
        metric.name + tail: metric
        for metric in METRICS
        for tail in SERIES[metric.kind.removesuffix("_max")]
    }
    used = set(re.findall(r"tollgate_\w+", rule["expr"]))
    assert used, rule
    assert used <= set(series), used - set(series)
    sources = [path.read_text("utf-8") for path in (ROOT / "services").rglob("*.py")]
    for name in used:
        metric = series[name]
        assert any(f'"{metric.name}"' in source for source in sources), f"{name} is never set"
        assert _labels_of(rule["expr"], metric.name) <= set(metric.labels)
    grouped = {
        word.strip()
        for words in re.findall(r"by \(([^)]*)\)", rule["expr"])
        for word in words.split(",")
    }
    shown = set(re.findall(r"\$labels\.(\w+)", rule["summary"]))
    assert shown <= grouped
    assert grouped - {"le"} <= {label for name in used for label in series[name].labels}
    assert rule["expr"].count("(") == rule["expr"].count(")")


def test_rules_are_complete():
    rules = _rules()
    assert len(rules) == ALERTS.count("- alert:") > 10
    assert len({rule["alert"] for rule in rules}) == len(rules)
    anchors = {
        "operate.md#" + re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.+)$", OPERATE, re.MULTILINE)
    }
    for rule in rules:
        assert rule["severity"] in ("page", "warn")
        assert re.fullmatch(r"\d+[mh]", rule["for"])
        assert rule["runbook"].strip('"') in anchors, rule
