"""A repeated insert is recognized while its token is within the table's window. One plan at most is
open per partition, so at most so many inserts lie between a try and its repetition."""

import re
from pathlib import Path

from services.backends.settings import load

DDL = Path(__file__).parent.parent.parent / "schemas" / "clickhouse"
INSERTS_PER_PLAN = 2  # one into each table, each with a token of its own


def test_the_window_holds_every_insert_that_can_come_between(tmp_path):
    partitions = load(None, {}, data_dir=str(tmp_path)).bus.partitions
    windows = [
        int(number)
        for file in DDL.glob("*.sql")
        for number in re.findall(r"non_replicated_deduplication_window = (\d+)", file.read_text())
    ]
    assert len(windows) == INSERTS_PER_PLAN
    assert min(windows) >= 1000 * partitions * INSERTS_PER_PLAN / 2
