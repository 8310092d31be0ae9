"""What a reconciliation leaves for `/metrics`: the moment up to which all was compared, in a file
of this host, and the number of differences."""

import contextlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import Final

from schemas.config import Config
from services.backends import settings, telemetry
from services.meter.reconcile_report import NOT_CAUGHT_UP, Report

_FILE: Final = "run/reconciled"


def leave_trace(config: Config, report: Report, began_s: float) -> None:
    """`began_s`: seconds since the epoch. A reconciliation that compared nothing leaves none; one
    that cannot write its trace is as valid."""
    if report.exit_code == NOT_CAUGHT_UP:
        return
    with contextlib.suppress(OSError):
        path = _path(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (began_s, began_s))
        _count(config, report)


def _count(config: Config, report: Report) -> None:
    pairs = Counter(difference.pair for difference in report.differences)
    if report.more_differences:
        pairs["more"] += report.more_differences
    if not pairs:
        return
    telemetry.share_metrics(config)
    for pair, count in pairs.items():
        telemetry.metric("tollgate_recon_mismatch_total").labels(pair).inc(count)


def watermark_age_s(config: Config) -> float | None:
    """None when this host has seen no reconciliation."""
    try:
        return max(0.0, time.time() - _path(config).stat().st_mtime)
    except OSError:
        return None


def _path(config: Config) -> Path:
    return settings.under(config, _FILE)
