"""`tollgate up`: everything on one machine, in one command."""

import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

import click

from schemas.config import Config
from services.backends import lifecycle, settings
from services.backends.query_client import QueryClient, QueryUnavailable
from services.backends.settings import under
from services.cli import demo as demonstration
from services.cli import installation
from services.cli.context import Cli, Command
from services.cli.ground import FolderLock, Refused, make_folder, require_port, require_writable
from services.cli.supervisor import Part, PartKeepsDying, Supervisor

READY_S: Final = 90.0
_LOOK_S: Final = 0.05
_BOOKS_GRACE_S: Final = 40.0
_BATCH_GRACE_S: Final = 30.0
_SIM_GRACE_S: Final = 5.0


class Stopped(lifecycle.Stop):
    """Counts the signals: the second one means at once."""

    def __init__(self) -> None:
        super().__init__()
        self.signals = 0

    def _on_signal(self, number: int, frame: object) -> None:
        self.signals += 1
        self.set()

    def hurry(self) -> bool:
        return self.signals > 1


@click.command(cls=Command)
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port (default 8080; 0: any free).")
@click.option("--quiet", is_flag=True, help="No examples, no line per request.")
@click.pass_obj
def up(cli: Cli, host: str | None, port: int | None, quiet: bool) -> None:
    """Starts the edge, the books, the analytics, the batch service for media and batches and, when
    a channel wants it, the simulated provider; makes a demo account with $10; stops everything in
    order on Ctrl-C or SIGTERM."""
    config = cli.config(edge__host=host, edge__port=port)
    stop = Stopped()
    stop.install()
    signal.signal(signal.SIGHUP, stop._on_signal)
    lifecycle.set_title("up")
    data_dir = Path(config.data_dir)
    make_folder(data_dir)
    make_folder(under(config, config.outbox.path))
    require_writable(under(config, config.artifacts.path))
    with FolderLock(data_dir):
        _choose_ports(config)
        simulated = installation.wants_sim(config)
        _say(f"data in {data_dir}")
        _forget_metrics(config)
        _apply(config)
        supervisor = _supervisor(cli, config, simulated=simulated, quiet=quiet)
        try:
            supervisor.start()
            url = demonstration.base_url(config)
            if not demonstration.is_prepared(config):  # else later, so that all is ready sooner
                demonstration.prepare(config, url)
            ready = _wait(config, supervisor, stop, simulated=simulated)
            made = demonstration.prepare(config, url) if ready else None
            if made is not None and not quiet:
                where = [*cli.where()] or _data_dir_option(config)
                click.echo(demonstration.examples(made, where, simulated=simulated))
            while ready and not stop.wait(0.2):
                supervisor.look()
        finally:
            _say("stopping: answers in progress end first")
            clean = supervisor.stop(stop.hurry)
        _say("stopped")
    if not clean:
        sys.exit(1)


def _choose_ports(config: Config) -> None:
    require_port(config.edge.host, config.edge.port)
    config.edge.port = config.edge.port or installation.free_port(config.edge.host)
    if config.sim.port == 0 and installation.wants_sim(config):
        config.sim.port = _sim_port(config)


def _sim_port(config: Config) -> int:
    """The port of the last start when it is still free, so that the channels stay the same."""
    port = installation.last_sim_port(config)
    try:
        require_port(config.sim.host, port)
    except Refused:
        port = 0
        require_port(config.sim.host, port)
    port = port or installation.free_port(config.sim.host)
    installation.remember_sim_port(config, port)
    return port


def _apply(config: Config) -> None:
    if not installation.is_applied(config):
        from services.cli.bootstrap import apply

        _say("preparing the database, prices and channels")
        apply(config)


def _forget_metrics(config: Config) -> None:
    """No process of this folder runs: what is there belongs to an earlier start."""
    for file in under(config, "run/metrics").glob("*.db"):
        file.unlink(missing_ok=True)


def _supervisor(cli: Cli, config: Config, *, simulated: bool, quiet: bool) -> Supervisor:
    python = [sys.executable, "-P", "-m"]  # -P: whatever lies in the present folder is not ours
    ours = [*python, "services.cli.main", *cli.where()]
    books = [*ours, "meter", "--roles", "relay,ledger"]
    grace_s = config.edge.graceful_timeout_s + 10
    parts = [
        Part("edge", [*ours, "edge"], grace_s),
        # Under a full load the parts behind the log wait, not the clients: what is served meanwhile
        # is bounded by the leases, and booked as soon as there is time.
        Part(
            "books",
            books if quiet else [*books, "--live"],
            _BOOKS_GRACE_S,
            shows=not quiet,
            niceness=5,
        ),
        Part(
            "analytics",
            [*ours, "meter", "--roles", "clickhouse,query"],
            _BOOKS_GRACE_S,
            niceness=10,
        ),
        Part("batch", [*ours, "batch"], _BATCH_GRACE_S, niceness=3),
    ]
    if simulated:
        where = ["--host", config.sim.host, "--port", str(config.sim.port)]
        parts.append(Part("sim", [*python, "services.sim", *where], _SIM_GRACE_S))
    environ = {
        **settings.process_environment(),
        "TOLLGATE_DATA_DIR": config.data_dir,
        "TOLLGATE_EDGE__HOST": config.edge.host,
        "TOLLGATE_EDGE__PORT": str(config.edge.port),
        "TOLLGATE_SIM__HOST": config.sim.host,
        "TOLLGATE_SIM__PORT": str(config.sim.port),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return Supervisor(parts, environ, under(config, config.log.path), _say)


def _wait(config: Config, supervisor: Supervisor, stop: Stopped, *, simulated: bool) -> bool:
    """Until the first request would be billed and its cost could be read. False when stopped
    before. Raises Refused."""
    names = "edge, books, analytics, batch" + (", simulated provider" if simulated else "")
    _say(f"starting {names}")
    began_s = time.monotonic()
    url = demonstration.base_url(config) + "/readyz"
    queries = QueryClient(config)
    told_s = began_s
    while not stop.wait(_LOOK_S):
        supervisor.look()
        try:
            supervisor.check_start()
        except PartKeepsDying as ex:
            click.echo(str(ex), err=True)
            raise Refused(str(ex).partition(":")[0]) from ex
        missing = _missing(url) or _deaf(queries)
        now_s = time.monotonic()
        if missing is None:
            _say(f"ready on {demonstration.base_url(config)} after {now_s - began_s:.1f} s")
            return True
        if now_s - began_s > READY_S:
            logs = under(config, config.log.path)
            raise Refused(f"not ready after {READY_S:.0f} s: {missing}; {logs} says why")
        if now_s - told_s >= 5:
            told_s = now_s
            _say(f"waiting: {missing}")
    return False


def _missing(url: str) -> str | None:
    """What /readyz says is missing; None when it says ready."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:  # noqa: S310 - our own address
            return None if reply.status == 200 else f"status {reply.status}"
    except urllib.error.HTTPError as ex:
        return ex.read(500).decode("utf-8", "replace")
    except OSError:
        return "the edge does not listen yet"


def _deaf(queries: QueryClient) -> str | None:
    """Why usage cannot be read yet; None when it can."""
    try:
        queries.health()
    except QueryUnavailable:
        return "analytics do not answer yet"
    return None


def _data_dir_option(config: Config) -> list[str]:
    """The default folder needs no option in the examples."""
    return (
        [] if Path(config.data_dir) == Path("data").resolve() else ["--data-dir", config.data_dir]
    )


def _say(line: str) -> None:
    try:
        click.echo(f"tollgate: {line}", err=True)
    except OSError:
        pass  # the terminal is gone; the parts are stopped all the same
