"""What a reconciliation leaves for the metrics of its host."""

import subprocess
import sys
import time

from services.backends import settings
from services.meter.reconcile_report import NOT_CAUGHT_UP, Report
from services.meter.reconcile_trace import leave_trace, watermark_age_s

FIND = """
import sys, time
from services.backends import settings, telemetry
from services.meter.reconcile_report import Report
from services.meter.reconcile_trace import leave_trace
config = settings.load(None, {}, data_dir=sys.argv[1])
report = Report()
for at in range(201):
    report.differ("bus-ledger" if at % 2 else "postings", str(at), "")
leave_trace(config, report, time.time())
telemetry.share_metrics(config)
print(telemetry.exposition().decode())
"""


def test_the_age_is_that_of_the_last_comparison(tmp_path):
    config = settings.load(None, {}, data_dir=str(tmp_path))
    assert watermark_age_s(config) is None
    leave_trace(config, Report(exit_code=NOT_CAUGHT_UP), time.time())
    assert watermark_age_s(config) is None  # it compared nothing
    leave_trace(config, Report(), time.time() - 100)
    assert 100 <= watermark_age_s(config) < 110


def test_differences_outlive_the_command(tmp_path):
    for runs in (1, 2):
        command = [sys.executable, "-c", FIND, str(tmp_path)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for pair, count in (("bus-ledger", 100), ("postings", 100), ("more", 1)):
            line = f'tollgate_recon_mismatch_total{{pair="{pair}"}} {float(count * runs)}'
            assert line in out, out
