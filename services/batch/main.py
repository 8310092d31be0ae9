"""Runs the batch service in this process until SIGTERM."""

from schemas.config import Config
from services.backends import lifecycle, telemetry
from services.batch.bootstrap import Batch


def run(config: Config) -> int:
    """Returns the exit code: 0 after SIGTERM or SIGINT, 1 when something escaped a loop, which
    ends all of them. Main thread only."""
    telemetry.configure("batch", config)
    lifecycle.set_title("batch")
    stop = lifecycle.Stop().install()
    batch = Batch(config)
    try:
        return lifecycle.run_threads(batch.loops, stop)
    finally:
        batch.close()
