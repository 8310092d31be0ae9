"""Counts the tests that ran on each real part, and fails a CI run in which a part had none."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

sys.path.insert(0, str(Path(__file__).parent.parent))

# A fixture of a session is one for all files only where one module registers it.
pytest_plugins = ["tests.parts.kafka"]

# An example may meet a moment in which the machine stands still: its time proves nothing.
settings.register_profile(
    "any-machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")

# Filled by tests/parts/*.py when a part is started: name -> version as the part itself tells it.
PARTS: dict[str, str] = {}
REQUIRED = (
    "kafka",
    "postgres",
    "chdb",
    "clickhouse-http",
    "anthropic-sdk",
    "openai-sdk",
    "claude-code",
    "codex",
)
_ran: Counter[str] = Counter()


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def part_missing(name: str, reason: str) -> None:
    """A missing real part fails the test in CI and skips it, with the reason, elsewhere."""
    if in_ci():
        pytest.fail(f"{name} is missing: {reason}")
    pytest.skip(f"{name} is missing: {reason}")


def pytest_collection_finish() -> None:
    """As every process does before it begins threads."""
    from services.backends import structs

    structs.describe_all()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: with several processes the short ones fill what is left at the end."""
    rank = {name: place for place, name in enumerate(("faults", "clients", "contract", "unit"))}
    places = {
        item.path: [rank[part] for part in item.path.parts[-3:-1] if part in rank] for item in items
    }
    items.sort(key=lambda item: min(places[item.path], default=len(rank)))


class _ByHouse(LoadFileScheduling):
    """The files of one process at a time; those of a folder below `contract` share what its
    conftest starts, so they are one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder.startswith("tests/contract/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") == "loadfile":
        return _ByHouse(config, log)
    return None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.passed:
        # A report is all that reaches the process that counts, when tests run in several.
        names = [mark.args[0] for mark in item.iter_markers("part")]
        report.user_properties += [("part", (name, PARTS.get(name, "-"))) for name in names]


def pytest_runtest_logreport(report):
    if report.when == "call":
        for name, version in (value for key, value in report.user_properties if key == "part"):
            _ran[name] += 1
            PARTS[name] = version


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-parts", action="store_true", help="every real part must have run")


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    names = list(REQUIRED) + sorted(set(_ran) - set(REQUIRED))
    if not _ran and not config.getoption("--all-parts"):
        return
    terminalreporter.section("real parts")
    terminalreporter.write_line(f"{'part':<18}| {'version':<28}| tests passed")
    for name in names:
        terminalreporter.write_line(f"{name:<18}| {PARTS.get(name, '-'):<28}| {_ran[name]}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    counts = not hasattr(session.config, "workerinput")  # a worker of pytest-xdist counts nothing
    if counts and in_ci() and session.config.getoption("--all-parts"):
        missing = [name for name in REQUIRED if not _ran[name]]
        if missing and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            print(f"\nno test ran on: {', '.join(missing)}", file=sys.stderr)
