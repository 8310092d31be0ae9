"""`python -m services.sim --port N --log FILE`: one process, any number of slow streams."""

import argparse
import os
import signal
import sys

import gevent
from gevent.server import StreamServer
from setproctitle import setproctitle

from services.sim import prices
from services.sim.app import Provider
from services.sim.calls import CallLog
from services.sim.media.serve import Media
from services.sim.streaming import Pace


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sim", description="the simulated provider")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port, printed")
    parser.add_argument("--log", help="file for one JSON line per call")
    parser.add_argument("--ttft-ms", type=float, default=0.0, help="before the first byte")
    parser.add_argument("--tokens-per-s", type=float, default=0.0, help="0: as fast as it goes")
    parser.add_argument("--media-queue-ms", type=float, default=100.0, help="a job waits so long")
    parser.add_argument("--media-run-ms", type=float, default=1500.0, help="a job runs so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prices", help="JSON: model -> class -> USD per million units")
    return parser.parse_args()


def main() -> int:
    asked = _arguments()
    setproctitle("tollgate: sim")
    pace = Pace(asked.ttft_ms / 1000, asked.tokens_per_s)
    table = prices.load(asked.prices)
    media = Media(
        table,
        seed=asked.seed,
        queue_s=asked.media_queue_ms / 1000,
        run_s=asked.media_run_ms / 1000,
    )
    provider = Provider(CallLog(asked.log), table, media, pace=pace, seed=asked.seed)
    server = StreamServer((asked.host, asked.port), provider.serve, backlog=2048)
    try:
        server.start()
    except OSError as ex:
        print(
            f"sim: cannot listen on {asked.host}:{asked.port}: {os.strerror(ex.errno or 0)}",
            file=sys.stderr,
        )
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.stop, 0.5)
    print(f"simulated provider on http://{asked.host}:{server.server_port}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
