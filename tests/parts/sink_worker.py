"""The ClickHouse sink as a process of its own, which fault tests kill. Works until the log's end,
then prints what the tables hold.

    python -m tests.parts.sink_worker FOLDER DSN BATCH
"""

import json
import sys
import threading
from pathlib import Path

from schemas.config import ClickHouse, Config
from schemas.events import TOPIC
from services.backends.bus.local import LocalBus
from services.backends.clickhouse.store import open_store
from services.backends.sql.engine import open_engine
from services.backends.sql.plans import Plans
from services.meter.clickhouse_sink import ClickHouseSink
from services.meter.consumer import Consumer
from tests.parts.clickhouse import stop_merges
from tests.parts.terminals import AllBooked

PARTITIONS = 2
DATABASE_URL = "sqlite:///tollgate.db"


def open_bus(folder: Path) -> LocalBus:
    bus = LocalBus(folder / "bus.db", PARTITIONS)
    bus.ensure_topics()
    return bus


def caught_up(bus: LocalBus, plans: Plans) -> bool:
    ends = {p: end for p, (_, end) in bus.bounds(TOPIC).items() if end}
    positions = plans.positions(TOPIC)
    return all(positions.get(p, 0) == end for p, end in ends.items())


def report(store) -> dict:
    """`stored` counts rows as they lie in the tables, `unique` after deduplication."""
    select = store.clickhouse.select
    final = select(
        "SELECT count(), sum(cost_nano), groupBitXor(sipHash64(event_id)) FROM requests FINAL"
    ).rows[0]
    return {
        "stored": select("SELECT count() FROM requests").rows[0][0],
        "stored_attempts": select("SELECT count() FROM attempts").rows[0][0],
        "unique": final[0],
        "cost_nano": final[1],
        "ids_hash": final[2],
    }


def main() -> None:
    folder, dsn, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    store = open_store(Config(data_dir=str(folder), clickhouse=ClickHouse(dsn=dsn)))
    stop_merges(store.clickhouse)
    bus = open_bus(folder)
    plans = Plans(open_engine(DATABASE_URL, folder))
    sink = ClickHouseSink(store, plans, bus, AllBooked())
    consumer = Consumer(bus, sink, batch=batch, wait_s=0.01)
    stop = threading.Event()
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()
    while thread.is_alive() and not caught_up(bus, plans):
        stop.wait(0.02)
    stop.set()
    thread.join()
    print(json.dumps(report(store)), flush=True)
    store.close()


if __name__ == "__main__":
    main()
