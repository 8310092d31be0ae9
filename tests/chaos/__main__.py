"""Chaos: random kills, stops and restarts of every part under traffic, then the proof.

scripts/chaos --seconds 60 --seed 1 [--kafka] [--postgres]
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of traffic and harm")
    parser.add_argument("--seed", type=int, help="default: a new one, printed")
    parser.add_argument("--kafka", action="store_true", help="the bus is a real Kafka broker")
    parser.add_argument("--postgres", action="store_true", help="the books are on PostgreSQL")
    parser.add_argument("--clients", type=int, default=12, help="clients at a time")
    parser.add_argument("--keep", type=Path, help="a new folder for data and logs, kept")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 31)
    wanted = {
        "seed": seed,
        "seconds": options.seconds,
        "clients": options.clients,
        "kafka": options.kafka,
        "postgres": options.postgres,
    }
    if options.keep is not None:
        options.keep.mkdir(parents=True)
        return run(options.keep, **wanted)
    with tempfile.TemporaryDirectory(prefix="tollgate-chaos-") as folder:
        return run(Path(folder), **wanted)


if __name__ == "__main__":
    sys.exit(main())
