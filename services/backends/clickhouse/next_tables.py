"""A second pair of tables beside the ones in use, and the exchange of both pairs."""

from typing import Final

from services.backends.clickhouse.client import ClickHouse
from services.backends.clickhouse.store import RequestStore

SUFFIX: Final = "_next"
# `attempts` first: whoever finds a request in the new table finds its attempts there too.
_TABLES: Final = ("attempts", "requests")


class NextTables:
    """The next epoch of `requests` and `attempts`. Every method raises ClickHouseUnavailable or
    QueryRefused."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self.store = RequestStore(clickhouse, SUFFIX)

    def make(self) -> None:
        """Empty tables of the same shape; what an earlier rebuild left is dropped."""
        self.drop()
        for table in _TABLES:
            self._clickhouse.command(f"CREATE TABLE {table}{SUFFIX} AS {table}")

    def keep_before(self, topic: str, partition: int, first_offset: int) -> None:
        """Takes over the rows that the log has lost already."""
        self._copy(topic, partition, f"log_offset < {int(first_offset)}")

    def keep_between(self, topic: str, partition: int, first: int, end: int) -> None:
        """Takes over the newest rows, `first` <= offset < `end`, which the fill has not reached."""
        self._copy(topic, partition, f"log_offset >= {int(first)} AND log_offset < {int(end)}")

    def _copy(self, topic: str, partition: int, which: str) -> None:
        for table in _TABLES:
            self._clickhouse.command(
                f"INSERT INTO {table}{SUFFIX} SELECT * FROM {table} FINAL "  # noqa: S608
                f"WHERE log_topic = '{topic}' AND log_partition = {int(partition)} AND {which}"
            )

    def exchange(self) -> None:
        """Each table at one instant: a reader finds the old one or the new one, never none."""
        for table in _TABLES:
            self._clickhouse.command(f"EXCHANGE TABLES {table} AND {table}{SUFFIX}")

    def drop(self) -> None:
        for table in _TABLES:
            self._clickhouse.command(f"DROP TABLE IF EXISTS {table}{SUFFIX} SYNC")
