"""What the relay shows while the bus is away: ages grow, repeats are counted."""

from prometheus_client import REGISTRY

from schemas.events import encode
from services.backends.clock import FakeClock
from services.backends.outbox_files import Row
from services.meter.relay_figures import RelayFigures
from tests.parts.outbox_worker import request


def value(name: str, **labels) -> float:
    return REGISTRY.get_sample_value(f"tollgate_{name}", labels) or 0.0


def row(seq: int, *, intact: bool = True) -> Row:
    body = encode(request(seq))
    return Row(seq, "request", "", "", 0, "acct_1", body, intact)


class Away:
    """A source that has `left` events."""

    def __init__(self, left: int) -> None:
        self.left = left

    def unshipped(self) -> int:
        return self.left


def test_ages_grow_until_the_bus_answers(tmp_path):
    clock = FakeClock()
    figures = RelayFigures(tmp_path, clock)
    resent, acked = value("ship_resent_total"), value("ship_ack_seconds_count")
    rows = [row(1), row(2)]
    figures.read("a", rows)
    figures.sending("a", rows)
    assert value("ship_inflight_records") == 2
    assert value("ship_inflight_bytes") == sum(len(each.body) for each in rows)
    for waited_s in (10, 20):
        clock.advance(10)
        figures.turn()
        age_s = value("outbox_oldest_unshipped_age_seconds")
        assert abs(age_s - waited_s) < 0.01
        assert value("ship_oldest_inflight_age_seconds") == waited_s
    again = [*rows, row(3)]
    figures.read("a", again)
    figures.sending("a", again)
    assert value("ship_resent_total") == resent + 2  # the third is new
    figures.acknowledged("a", 3)
    figures.read("a", [])
    figures.turn()
    assert value("ship_ack_seconds_count") == acked + 1
    for name in ("inflight_records", "inflight_bytes", "oldest_inflight_age_seconds"):
        assert value(f"ship_{name}") == 0
    assert value("outbox_oldest_unshipped_age_seconds") == 0


def test_the_oldest_of_all_sources_counts_until_it_is_gone(tmp_path):
    clock = FakeClock()
    figures = RelayFigures(tmp_path, clock)
    figures.read("a", [row(1)])
    clock.advance(5)
    figures.read("b", [row(5_000_000)])
    figures.read("c", [row(1, intact=False)])  # its time cannot be believed
    figures.turn()
    assert abs(value("outbox_oldest_unshipped_age_seconds") - 5) < 0.01
    figures.look({"b": Away(0)}, [], {})
    figures.turn()
    assert value("outbox_oldest_unshipped_age_seconds") < 0.01


def test_sizes_and_what_waits_for_a_person(tmp_path):
    for name, size in (
        ("edge-1-000001.db", 100),
        ("edge-1-000002.db-wal", 50),
        ("edge-1.ballast", 4000),
        ("edge-0-000001.quarantined", 7),
        ("edge-2-000001.db", 0),
    ):
        (tmp_path / name).write_bytes(b"x" * size)
    figures = RelayFigures(tmp_path, FakeClock())
    figures.look({"edge-1": Away(3), "b": Away(4)}, ["edge-2"], {"too_large": 2})
    assert value("outbox_bytes") == 157
    assert value("outbox_records_unshipped") == 7
    assert value("outbox_orphan_files") == 2
    assert value("dead_events", reason="too_large") == 2
    figures.look({}, [], {})
    assert value("dead_events", reason="too_large") == 0
