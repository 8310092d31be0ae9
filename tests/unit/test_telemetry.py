import json
import subprocess
import sys

import pytest

from schemas.metrics import METRICS
from services.backends.telemetry import redacted

RUN = """
import sys
from services.backends import settings, telemetry
config = settings.load(None, {}, data_dir=sys.argv[1])
telemetry.configure("edge", config)
log = telemetry.get_logger()
"""


def run(folder, code):
    done = subprocess.run(
        [sys.executable, "-c", RUN + code, str(folder)], capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_a_log_line_is_json_without_secrets(tmp_path):
    out, err = run(
        tmp_path,
        """
try:
    raise ValueError("bad key sk-toll-SECRETSECRET1234")
except ValueError:
    log.exception("broke", authorization="Bearer abcdefgh", nested={"x-api-key": "plain", "n": 1},
                  text="Authorization: Bearer abc.def.ghi", listed=["sk-ant-SECRET99"])
log.debug("not shown")
""",
    )
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    line = json.loads(lines[0])
    assert (line["event"], line["level"], line["role"]) == ("broke", "error", "edge")
    assert line["nested"] == {"x-api-key": "***", "n": 1}
    assert "ValueError" in line["exception"]
    for secret in ("SECRETSECRET", "SECRET99", "abcdefgh", "plain", "abc.def"):
        assert secret not in err


def test_a_log_line_is_bounded_json_and_keeps_both_ends(tmp_path):
    code = "log.error('broke', error='why ' + 'x' * 10**6 + ' end', b=b'y' * 10**6, n=float('inf'))"
    _, err = run(tmp_path, code)
    assert len(err) < 40_000
    told = json.loads(err, parse_constant=pytest.fail)
    assert (told["error"][:4], told["error"][-4:], told["n"]) == ("why ", " end", "inf")


def test_a_file_that_another_process_removes_keeps_none_from_starting(tmp_path):
    folder = tmp_path / "run" / "metrics"
    folder.mkdir(parents=True)
    (folder / "gauge_livesum_1.db").symlink_to("gone")  # listed, and not there when looked at
    run(tmp_path, "")


def test_the_standard_library_logs_in_the_same_form(tmp_path):
    _, err = run(
        tmp_path,
        """
import logging
logger = logging.getLogger("some.module")
try:
    raise KeyError("sk-toll-SECRETSECRET1234")
except KeyError:
    logger.exception("request %s failed with %s", "r1", "sk-ant-SECRET99")
logger.debug("not shown")
""",
    )
    lines = [json.loads(text) for text in err.splitlines()]
    assert len(lines) == 1
    assert lines[0]["event"].startswith("request r1 failed")
    assert (lines[0]["level"], lines[0]["role"]) == ("error", "edge")
    assert "KeyError" in lines[0]["exception"]
    assert "SECRET" not in err


@pytest.mark.parametrize(
    "text",
    [
        "sk-toll-" + "a" * 43,
        "x sk-ant-api03-abcdefghijk y",
        "Bearer tokentoken",
        "bearer t0ken.t0ken",
    ],
)
def test_redaction_leaves_no_secret(text):
    shown = redacted(text)
    assert "***" in shown
    assert not any(
        part in shown for part in ("aaaaaaaa", "abcdefghijk", "tokentoken", "t0ken.t0ken")
    )
    assert redacted(shown) == shown


def test_plain_text_is_not_touched():
    assert (
        redacted("a task-list, risk-free, claude-sonnet-4-6")
        == "a task-list, risk-free, claude-sonnet-4-6"
    )


def test_one_page_shows_the_metrics_of_all_processes(tmp_path):
    count = 'telemetry.metric("tollgate_refusals_total").labels("x").inc()\n'
    hold = 'telemetry.metric("tollgate_in_flight").set(3)\n'
    run(tmp_path, count + hold)
    run(tmp_path, count)
    out, _ = run(tmp_path, count + "print(telemetry.exposition().decode())")
    assert 'tollgate_refusals_total{code="x"} 3.0' in out
    assert "tollgate_in_flight 3.0" not in out  # that process is gone, and its gauge with it


def test_names_are_unique_and_can_all_be_made(tmp_path):
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    out, _ = run(
        tmp_path,
        "from schemas.metrics import METRICS\n"
        "for m in METRICS: telemetry.metric(m.name)\n"
        "print('fine')",
    )
    assert out == "fine\n"
