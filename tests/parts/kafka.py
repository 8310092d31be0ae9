"""Real Kafka brokers (KRaft) on loopback, started from jars.

`tests/conftest.py` registers them: `kafka_broker` is shared by a whole session; tests that stop or
kill a broker take `own_broker`, or `kafka_cluster`: three nodes that hold every partition three
times. Topics never clash: `bus_config` gives each caller a prefix of its own.
"""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas import config as schema
from services.backends.lifecycle import die_with_parent
from tests.conftest import PARTS, part_missing
from tests.parts.ports import free_port

ROOT = Path(__file__).parent.parent.parent
LIBS = ROOT / ".cache" / "kafka" / "libs"
CLASSES = LIBS.parent / "classes.jsa"
READY_S = 60.0


class Broker:
    """One node, broker and controller in one. `voters`: (node id, controller port) of every node of
    its cluster; without them it is alone."""

    def __init__(
        self,
        folder: Path,
        node: int = 1,
        voters: Sequence[tuple[int, int]] = (),
        *,
        heap_mb: int = 512,
    ) -> None:
        self.folder = folder
        self.node = node
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._voters = dict(voters or [(node, free_port())])
        self._heap_mb = heap_mb
        self.flags: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._write_config()
        self._java("kafka.tools.StorageTool", "format", "-t", _cluster_id(), "-c", self._config)

    def _write_config(self) -> None:
        controller = self._voters[self.node]
        replicas = len(self._voters)
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in self._voters.items())
        self._config = str(self.folder / "server.properties")
        lines = {
            "process.roles": "broker,controller",
            "node.id": self.node,
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self.folder / "logs",
            "offsets.topic.replication.factor": replicas,
            "offsets.topic.num.partitions": 2,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": max(1, replicas - 1),
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
            "controlled.shutdown.enable": "false",
            # A dead node is given up after seconds, on a busy machine too.
            "broker.heartbeat.interval.ms": 500,
            "broker.session.timeout.ms": 6000,
            "replica.lag.time.max.ms": 6000,
        }
        text = "\n".join(f"{name}={value}" for name, value in lines.items())
        Path(self._config).write_text(text + "\n")

    def _command(self, *args: str) -> list[str]:
        flags = [f"-Xmx{self._heap_mb}m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        if CLASSES.exists():
            flags.append(f"-XX:SharedArchiveFile={CLASSES}")
        return ["java", *flags, *self.flags, "-cp", f"{LIBS}/*", *args]

    def _java(self, *args: str) -> None:
        done = subprocess.run(self._command(*args), capture_output=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout.decode() + done.stderr.decode())

    def start(self) -> None:
        self.launch()
        self.wait_listening()

    def launch(self) -> None:
        """Starts the process. It dies with the calling thread."""
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("kafka.Kafka", self._config),
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def wait_listening(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "broker.log").read_text()[-4000:])
            time.sleep(0.1)

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT: a machine that hangs."""
        assert self._process is not None
        self._process.send_signal(number)

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


class Cluster:
    """Three nodes: every partition on each, a write is acknowledged by two, any one may die."""

    def __init__(self, folder: Path) -> None:
        voters = [(node, free_port()) for node in (1, 2, 3)]
        folders = [folder / f"node-{node}" for node, _ in voters]
        for each in folders:
            each.mkdir(parents=True)
        with ThreadPoolExecutor(3) as threads:
            made = threads.map(
                lambda number: Broker(folders[number], number + 1, voters, heap_mb=256), range(3)
            )
            self.nodes = {broker.node: broker for broker in made}

    @property
    def bootstrap(self) -> list[str]:
        return [broker.bootstrap for broker in self.nodes.values()]

    def bus_config(self, **values) -> schema.Bus:
        config = self.nodes[1].bus_config(replication=3, **values)
        config.bootstrap = self.bootstrap
        return config

    def start(self) -> None:
        """Starts the nodes that do not run; returns when all three are members."""
        down = [broker for broker in self.nodes.values() if not broker.running]
        for broker in down:
            broker.launch()
        for broker in down:
            broker.wait_listening()
        self._wait(lambda: len(self._described()["brokers"]) == 3, "three members")

    def stop(self) -> None:
        for broker in self.nodes.values():
            broker.kill()

    def leaders(self, topic: str) -> dict[int, int]:
        """partition -> the node that leads it."""
        return {each["partition_index"]: each["leader_id"] for each in self._partitions(topic)}

    def wait_in_sync(self, topic: str, replicas: int = 3) -> None:
        """Until so many nodes hold everything of every partition."""
        self._wait(
            lambda: all(len(each["isr_nodes"]) >= replicas for each in self._partitions(topic)),
            f"{replicas} replicas in sync",
        )

    def _partitions(self, topic: str) -> list[dict]:
        return self._ask(lambda admin: admin.describe_topics([topic])[0]["partitions"])

    def _described(self) -> dict:
        return self._ask(lambda admin: admin.describe_cluster())

    def _ask(self, question):
        """A client asks any node that it knows of, dead ones too: until one answers."""
        from kafka.admin import KafkaAdminClient  # half a second, and every run of tests is here
        from kafka.errors import KafkaError

        deadline = time.monotonic() + READY_S
        while True:
            living = [broker.bootstrap for broker in self.nodes.values() if broker.running]
            try:
                admin = KafkaAdminClient(
                    bootstrap_servers=living, api_version=(4, 0), request_timeout_ms=5000
                )
                try:
                    return question(admin)
                finally:
                    admin.close()
            except KafkaError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    @staticmethod
    def _wait(done, what: str) -> None:
        deadline = time.monotonic() + READY_S
        while not done():
            assert time.monotonic() < deadline, f"no {what} in {READY_S:.0f} s"
            time.sleep(0.2)


def _cluster_id() -> str:
    return "dG9sbGdhdGUtdGVzdHMxMA"


def _version() -> str:
    return next(LIBS.glob("kafka_2.13-*.jar")).stem.removeprefix("kafka_2.13-")


def archive_classes() -> None:
    """Keeps the broker's classes as the machine wants them: one that starts from there needs two
    thirds of the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        made = Path(folder) / CLASSES.name
        broker.flags.append(f"-XX:ArchiveClassesAtExit={made}")
        broker.start()
        broker.stop()  # writes the archive
        shutil.move(made, CLASSES)


def _require_kafka() -> None:
    """Skips or fails the test when Java or the jars cannot be had."""
    if shutil.which("java") is None:
        part_missing("kafka", "no java")
    done = subprocess.run(
        [str(ROOT / "scripts" / "install-kafka")], capture_output=True, check=False, timeout=600
    )
    if done.returncode:
        part_missing("kafka", done.stderr.decode()[-500:] or "the jars could not be fetched")
    PARTS["kafka"] = f"{_version()} (KRaft)"


def make_broker(folder: Path) -> Broker:
    """A started broker."""
    _require_kafka()
    broker = Broker(folder)
    broker.start()
    return broker


def make_cluster(folder: Path) -> Cluster:
    """Three started nodes."""
    _require_kafka()
    cluster = Cluster(folder)
    try:
        cluster.start()
    except BaseException:
        cluster.stop()
        raise
    return cluster


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


@pytest.fixture(scope="module")
def kafka_cluster(tmp_path_factory):
    """Three nodes that the tests of one module may kill and start."""
    cluster = make_cluster(tmp_path_factory.mktemp("kafka-cluster"))
    yield cluster
    cluster.stop()


if __name__ == "__main__":
    archive_classes()
