"""A real Kafka broker (KRaft, one node) on loopback, started from jars.

`kafka_broker` is shared by a whole session; tests that stop or kill a broker take `own_broker`.
Topics never clash: `bus_config` gives each caller a prefix of its own.
"""

import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from schemas import config as schema
from services.backends.lifecycle import die_with_parent
from tests.conftest import PARTS, part_missing

ROOT = Path(__file__).parent.parent.parent
LIBS = ROOT / ".cache" / "kafka" / "libs"
READY_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Broker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._write_config()
        self._java("kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", self._config)

    def _write_config(self) -> None:
        controller = free_port()
        self._config = str(self.folder / "server.properties")
        lines = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self.folder / "logs",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 2,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
            "controlled.shutdown.enable": "false",
        }
        text = "\n".join(f"{name}={value}" for name, value in lines.items())
        Path(self._config).write_text(text + "\n")

    def _command(self, *args: str) -> list[str]:
        flags = ["-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return ["java", *flags, "-cp", f"{LIBS}/*", *args]

    def _java(self, *args: str) -> None:
        done = subprocess.run(self._command(*args), capture_output=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout.decode() + done.stderr.decode())

    def start(self) -> None:
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("kafka.Kafka", self._config),
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "broker.log").read_text()[-4000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=0.5).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)
            self._process = None

    def bus_config(self, **values) -> schema.Bus:
        return schema.Bus(
            kind="kafka",
            bootstrap=[self.bootstrap],
            topic_prefix=f"t{uuid.uuid4().hex[:8]}-",
            **values,
        )


def _cluster_id() -> str:
    return "dG9sbGdhdGUtdGVzdHMxMA"


def _version() -> str:
    return next(LIBS.glob("kafka_2.13-*.jar")).stem.removeprefix("kafka_2.13-")


def make_broker(folder: Path) -> Broker:
    """A started broker; skips or fails the test when Java or the jars cannot be had."""
    if shutil.which("java") is None:
        part_missing("kafka", "no java")
    done = subprocess.run(
        [str(ROOT / "scripts" / "install-kafka")], capture_output=True, check=False, timeout=600
    )
    if done.returncode:
        part_missing("kafka", done.stderr.decode()[-500:] or "the jars could not be fetched")
    broker = Broker(folder)
    broker.start()
    PARTS["kafka"] = f"{_version()} (KRaft)"
    return broker


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory):
    broker = make_broker(tmp_path_factory.mktemp("kafka"))
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory):
    """A broker that the tests of one module may stop, kill and start."""
    broker = make_broker(tmp_path_factory.mktemp("own-kafka"))
    yield broker
    broker.kill()
