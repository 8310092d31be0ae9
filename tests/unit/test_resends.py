"""Which events may be in the tables already: against a model of what a relay can send."""

import random

from services.backends.clickhouse.rows import Place, Stored
from services.meter import resends as module
from services.meter.resends import Resends
from tests.parts.terminals import usage


def row(number, incarnation="edge-1", **fields):
    event = usage(
        number, incarnation=incarnation, event_id=f"{incarnation}:{number}:usage", **fields
    )
    return Stored(event, Place(0, 0))


def numbers(rows):
    return [each.event.seq - 1 for each in rows]


def test_a_worker_is_looked_up_until_one_of_its_events_was_not_there():
    resends = Resends()
    batch = [row(5), row(6)]
    assert resends.possible(batch) == batch
    resends.planned(batch, {each.event.event_id for each in batch})
    assert resends.possible([row(7)]) == [row(7)], "all were found: more of them may be there"
    resends.planned([row(7), row(8)], {row(7).event.event_id})
    assert numbers(resends.possible([row(8), row(9), row(6), row(9, "edge-2")])) == [8, 6, 9]


def test_events_without_a_number_are_always_looked_up():
    resends = Resends()
    for odd in (row(1, ""), row(1, seq=0)):
        resends.planned([odd], set())
        assert resends.possible([odd]) == [odd]


def test_memory_is_bounded_and_what_is_forgotten_is_looked_up(monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 3)
    resends = Resends()
    for n in range(5):
        resends.planned([row(1, f"edge-{n}")], set())
    assert [len(resends.possible([row(2, f"edge-{n}")])) for n in range(5)] == [1, 1, 0, 0, 0]


def test_whatever_a_relay_repeats_no_event_is_missed():
    """Batches of a log with resends and restarts of the owner: what is not looked up is new."""
    looked_up = planned = 0
    for seed in range(200):
        chance = random.Random(seed)
        log = []
        for name in ("edge-1", "edge-2"):
            sent = position = 0
            while sent < 40:
                upto = min(40, position + chance.randint(1, 9))
                log += [(name, n) for n in range(position, upto)]
                sent = upto
                position = upto if chance.random() < 0.7 else chance.randint(0, upto)
        one = [each for each in log if each[0] == "edge-1"]
        two = [each for each in log if each[0] == "edge-2"]
        log = []
        while one or two:  # each keeps its own order
            queue = one if one and (not two or chance.random() < 0.5) else two
            log.append(queue.pop(0))
        tables, resends = set(), Resends()
        while log:
            if chance.random() < 0.1:
                resends = Resends()
            batch, log = log[:7], log[7:]
            rows = list({each: row(each[1], each[0]) for each in batch}.values())
            possible = {each.event.event_id for each in resends.possible(rows)}
            there = {each.event.event_id for each in rows} & tables
            assert there <= possible, f"seed {seed}"
            looked_up += len(possible)
            planned += len(rows)
            resends.planned(rows, there)
            tables |= {each.event.event_id for each in rows}
        assert len(tables) == 80
    assert looked_up < planned * 0.7, (looked_up, planned)
