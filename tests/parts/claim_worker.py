"""A process that claims jobs whose claims run out at once: `URL FOLDER COUNT`; prints what it got,
a line each: job id, epoch."""

import sys
from pathlib import Path

from services.backends.sql.engine import open_engine
from services.backends.sql.grouped import GroupedWrites
from services.backends.sql.job_claims import JobClaims

BATCH = 20


def main(url: str, folder: str, count: str) -> None:
    claims = JobClaims(GroupedWrites(open_engine(url, Path(folder))), claim_s=0.0)
    got = 0
    while got < int(count):
        for each in claims.claim(BATCH):
            print(each.job.id, each.job.epoch)
            got += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
