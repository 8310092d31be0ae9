"""Runs the batch service in this process until SIGTERM."""

from schemas.config import Config
from services.backends import lifecycle, telemetry
from services.backends.sql.revision import SchemaTooOld
from services.batch.bootstrap import Batch


def run(config: Config) -> int:
    """Returns the exit code: 0 after SIGTERM or SIGINT, 1 when something escaped a loop, which
    ends all of them, or when the database's schema is too old. Main thread only."""
    telemetry.configure("batch", config)
    lifecycle.set_title("batch")
    stop = lifecycle.Stop().install()
    try:
        batch = Batch(config)
    except SchemaTooOld as ex:
        telemetry.get_logger().critical("schema_too_old", error=str(ex))
        return 1
    try:
        return lifecycle.run_threads(batch.loops, stop)
    finally:
        batch.close()
