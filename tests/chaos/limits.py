"""Looks at every limit again and again while the parts are hurt: charged and leased money never
pass it, at any commit."""

import threading

from sqlalchemy import select

from services.backends.sql.engine import DatabaseUnavailable, open_engine, read
from services.backends.sql.tables import limit_row
from tests.chaos.installation import Installation

EVERY_S = 0.05


class LimitWatch(threading.Thread):
    """`looks` at the database, and each limit that was passed in one of them."""

    def __init__(self, program: Installation) -> None:
        super().__init__(daemon=True)
        config = program.config
        self.engine = open_engine(config.database.url, program.data_dir)
        self.looks = 0
        self.passed: dict[str, str] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(EVERY_S):
            try:
                self.look()
            except DatabaseUnavailable:
                continue

    def look(self) -> None:
        out_nano = limit_row.c.settled_nano + limit_row.c.leased_nano
        query = select(limit_row).where(out_nano > limit_row.c.limit_nano)
        for row in read(self.engine, lambda connection: connection.execute(query).all()):
            self.passed[row.id] = (
                f"{row.kind} of {row.subject}: settled {row.settled_nano} + leased "
                f"{row.leased_nano} > limit {row.limit_nano}"
            )
        self.looks += 1

    def stop(self) -> None:
        self._over.set()
        self.join(60)
        self.look()
