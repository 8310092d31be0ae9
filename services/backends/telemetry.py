"""Structured logs on stderr and Prometheus metrics that all processes of a host share."""

import contextlib
import faulthandler
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import structlog

from schemas.config import Config
from schemas.metrics import METRICS, Metric
from services.backends import settings

METRICS_FOLDER: Final = "run/metrics"
_MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"
_KEPT_FILES: Final = 400
_TEXT_CHARS: Final = 16_000
_SECRET_TEXT: Final = re.compile(r"\b(sk-[A-Za-z0-9_-]{4})[A-Za-z0-9_-]{4,}|(?i:(bearer )\S{6,})")
_SECRET_NAMES: Final = frozenset(
    {"authorization", "x-api-key", "x-goog-api-key", "cookie", "credential", "secret", "api_key"}
)
_made: dict[str, Any] = {}
_making = threading.Lock()
_BY_NAME: Final = {metric.name: metric for metric in METRICS}


def configure(role: str, config: Config) -> None:
    """Sets up logs and metrics of this process; the first thing that a process does.

    Must run before anything else imports prometheus_client."""
    if not faulthandler.is_enabled():
        faulthandler.enable()  # a crash inside a C library leaves its Python stack in the log
    _configure_logs(role, config.log.level)
    share_metrics(config)


def share_metrics(config: Config) -> None:
    """From now on the metrics of this process are part of the host's."""
    folder = settings.under(config, METRICS_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    _drop_dead_files(folder)
    settings.set_environment(_MULTIPROCESS, str(folder))


def get_logger() -> Any:
    """The process's logger: `log.info("event_name", field=value)`."""
    return structlog.get_logger()


def metric(name: str) -> Any:
    """The Prometheus metric of that name in `schemas.metrics`. KeyError for any other name.

    Keep what `.labels(...)` returns when the path is hot."""
    found = _made.get(name)
    if found is None:
        with _making:  # two threads may be the first: a metric can be registered once
            found = _made.get(name) or _made.setdefault(name, _make(name))
    return found


def _make(name: str) -> Any:
    import prometheus_client  # here, because it reads its folder from the environment once

    spec: Metric = _BY_NAME[name]
    if spec.kind == "counter":
        return prometheus_client.Counter(spec.name, spec.help, spec.labels)
    if spec.kind == "histogram":
        return prometheus_client.Histogram(spec.name, spec.help, spec.labels, buckets=spec.buckets)
    mode: Any = "livesum" if spec.kind == "gauge" else "livemax"
    return prometheus_client.Gauge(spec.name, spec.help, spec.labels, multiprocess_mode=mode)


def exposition() -> bytes:
    """The metrics of all processes of this host, as Prometheus text 0.0.4."""
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    folder = settings.environment(_MULTIPROCESS)
    if not folder:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def redacted(text: str) -> str:
    """`text` without the secret part of keys and bearer tokens."""
    return _SECRET_TEXT.sub(lambda found: (found[1] or found[2]) + "***", text)


def _configure_logs(role: str, level: str) -> None:
    """structlog's and the standard library's records become the same JSON lines."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
        lambda logger, method, fields: {**fields, "role": role, "pid": os.getpid()},
        _redact,
    ]
    render = structlog.processors.JSONRenderer(default=str)
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for library in ("kafka", "alembic", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _redact(logger: Any, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in fields.items():
        fields[name] = _clean(name, value)
    return fields


def _clean(name: str, value: Any) -> Any:
    if name.lower() in _SECRET_NAMES and value:
        return "***"
    if isinstance(value, str):
        return _bounded(redacted(value))
    if isinstance(value, bytes):
        return _bounded(redacted(value.decode("utf-8", "replace")))
    if isinstance(value, Mapping):
        return {key: _clean(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean("", item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):  # JSON has no other numbers
        return value
    return _bounded(redacted(str(value)))


def _bounded(text: str) -> str:
    """Its beginning and its end: an exception says what it is in its last line."""
    if len(text) <= _TEXT_CHARS:
        return text
    half = _TEXT_CHARS // 2
    return f"{text[:half]} ... {len(text) - 2 * half} more ... {text[-half:]}"


def _drop_dead_files(folder: Path) -> None:
    """Gauges of dead processes go at once, their counters when there are too many files."""
    aged = []
    for path in folder.glob("*.db"):
        with contextlib.suppress(FileNotFoundError):  # another process starts just now, too
            aged.append((path.stat().st_mtime, path))
    files = [path for _, path in sorted(aged)]
    for at, path in enumerate(files):
        pid = path.stem.rpartition("_")[2]
        dead = pid.isdigit() and not Path(f"/proc/{pid}").exists()
        if dead and (path.name.startswith("gauge_") or at < len(files) - _KEPT_FILES):
            path.unlink(missing_ok=True)
