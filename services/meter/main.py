"""Runs roles of the meter in this process until SIGTERM."""

from typing import Final

from schemas.config import Config
from services.backends import lifecycle, telemetry
from services.backends.sql.revision import SchemaTooOld
from services.meter.bootstrap import Meter

_NAMES: Final = {
    frozenset({"relay", "ledger"}): "books",
    frozenset({"clickhouse", "query"}): "analytics",
}


def run(config: Config, roles: set[str], live: bool = False) -> int:
    """Runs each role in a thread of its own; returns the exit code: 0 after SIGTERM or SIGINT, 1
    when something escaped a role, which ends all of them. `live` prints a line per request that
    was booked. Main thread only. 1 as well when the database's schema is too old."""
    name = _NAMES.get(frozenset(roles), f"meter {','.join(sorted(roles))}")
    telemetry.configure(name, config)
    lifecycle.set_title(name)
    stop = lifecycle.Stop().install()
    meter = Meter(config, roles, live=live)
    try:
        meter.require_schema()
        return lifecycle.run_threads(meter.loops, stop)
    except SchemaTooOld as ex:
        telemetry.get_logger().critical("schema_too_old", error=str(ex))
        return 1
    finally:
        meter.close()
