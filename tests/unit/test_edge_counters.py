"""Metrics added up by a worker tell the same as single observations."""

import prometheus_client
import pytest

from services.backends import observations
from services.edge import counters as module
from services.edge.counters import Counters

NAME = "tollgate_first_byte_seconds"
BOUNDS = (0.01, 0.1, 1.0)
VALUES = (0.0, 0.01, 0.0100001, 0.1, 0.5, 1.0, 7.5)


def samples(histogram) -> dict:
    return {
        (sample.name.removeprefix(histogram._name), sample.labels.get("le")): sample.value
        for family in histogram.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_flush_tells_what_single_observations_tell(monkeypatch):
    registry = prometheus_client.CollectorRegistry()
    one_by_one = prometheus_client.Histogram("a", "a", ["d"], buckets=BOUNDS, registry=registry)
    flushed = prometheus_client.Histogram("b", "b", ["d"], buckets=BOUNDS, registry=registry)
    monkeypatch.setattr(observations, "metric", lambda name: flushed)
    monkeypatch.setitem(observations.BUCKETS, NAME, BOUNDS)
    counters = Counters()
    for _ in range(2):
        for value in VALUES:
            one_by_one.labels("chat").observe(value)
            counters.observe(NAME, value, "chat")
        counters.flush()
        assert samples(flushed) == pytest.approx(samples(one_by_one))
    counters.flush()
    assert samples(flushed) == pytest.approx(samples(one_by_one))


def test_sums_are_written_once(monkeypatch):
    registry = prometheus_client.CollectorRegistry()
    counter = prometheus_client.Counter("c", "c", ["code"], registry=registry)
    monkeypatch.setattr(module, "metric", lambda name: counter)
    counters = Counters()
    counters.add("tollgate_refusals_total", "not_found")
    counters.add("tollgate_refusals_total", "not_found", amount=4)
    counters.flush()
    counters.flush()
    assert registry.get_sample_value("c_total", {"code": "not_found"}) == 5
