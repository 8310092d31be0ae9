"""A second pair of tables beside the ones in use, and the exchange of both pairs."""

from typing import Final

from services.backends.clickhouse.client import ClickHouse
from services.backends.clickhouse.store import RequestStore

_MARK: Final = "_next"
# `attempts` first: whoever finds a request in the new table finds its attempts there too.
_TABLES: Final = ("attempts", "requests")


class NextTables:
    """The next epoch of `requests` and `attempts`, filled by one rebuild alone: its tables are
    named by `run_id` (letters and digits). Every method raises ClickHouseUnavailable or
    QueryRefused."""

    def __init__(self, clickhouse: ClickHouse, run_id: str) -> None:
        self._clickhouse = clickhouse
        self._suffix = f"{_MARK}_{run_id}"
        self.store = RequestStore(clickhouse, self._suffix)

    def make(self) -> None:
        """Empty tables of the same shape. What other rebuilds left is dropped; one that still runs
        ends with an error then, and exchanges nothing."""
        for name in self._left():
            self._clickhouse.command(f"DROP TABLE IF EXISTS `{name}` SYNC")
        for table in _TABLES:
            self._clickhouse.command(f"CREATE TABLE {table}{self._suffix} AS {table}")

    def keep_before(self, topic: str, partition: int, first_offset: int) -> None:
        """Takes over the rows that the log has lost already."""
        self._copy(topic, partition, f"log_offset < {int(first_offset)}")

    def keep_between(self, topic: str, partition: int, first: int, end: int) -> None:
        """Takes over the newest rows, `first` <= offset < `end`, which the fill has not reached."""
        self._copy(topic, partition, f"log_offset >= {int(first)} AND log_offset < {int(end)}")

    def _copy(self, topic: str, partition: int, which: str) -> None:
        for table in _TABLES:
            self._clickhouse.command(
                f"INSERT INTO {table}{self._suffix} SELECT * FROM {table} FINAL "  # noqa: S608
                f"WHERE log_topic = '{topic}' AND log_partition = {int(partition)} AND {which}"
            )

    def exchange(self) -> None:
        """Each table at one instant: a reader finds the old one or the new one, never none."""
        for table in _TABLES:
            self._clickhouse.command(f"EXCHANGE TABLES {table} AND {table}{self._suffix}")

    def drop(self) -> None:
        for table in _TABLES:
            self._clickhouse.command(f"DROP TABLE IF EXISTS {table}{self._suffix} SYNC")

    def _left(self) -> list[str]:
        parts = " OR ".join(f"startsWith(name, '{table}{_MARK}')" for table in _TABLES)
        sql = f"SELECT name FROM system.tables WHERE database = currentDatabase() AND ({parts})"  # noqa: S608
        return [row[0] for row in self._clickhouse.select(sql).rows]
