"""The container layout starts what exists: images pinned, settings and commands understood."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from services.backends.settings import load
from services.cli.installation import channels
from services.cli.main import tollgate
from services.cli.meter import ROLES

COMPOSE = Path(__file__).parent.parent.parent / "compose"
TEXT = (COMPOSE / "compose.yaml").read_text()
SECRETS = dict(
    line.split("=", 1) for line in (COMPOSE / "example.env").read_text().splitlines() if line
)


def commands() -> list[list[str]]:
    """The `command:` of every service of ours, as words."""
    lists = re.findall(r"^ +command: \[(.*)\]$", TEXT, re.MULTILINE)
    return [re.findall(r'"([^"]*)"|([^\s,"]+)', line) for line in lists]


def words(command) -> list[str]:
    return [quoted or plain for quoted, plain in command]


def test_images_are_pinned():
    images = re.findall(r"image: (\S+)", TEXT)
    images += re.findall(r"^FROM (\S+)", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) == 5
    assert all(re.search(r":\d+\.\d+", image) for image in images), images


def test_the_settings_are_understood(tmp_path):
    named = dict(re.findall(r'^ +(TOLLGATE_\w+): "?([^"\n]+)"?$', TEXT, re.MULTILINE))
    environ = {k: re.sub(r"\$\{(\w+)\}", lambda m: SECRETS[m[1]], v) for k, v in named.items()}
    config = load(COMPOSE / "tollgate.toml", {**environ, "TOLLGATE_DATA_DIR": str(tmp_path)})
    assert (config.bus.kind, config.bus.bootstrap) == ("kafka", ["kafka:9092"])
    assert config.database.url.startswith("postgresql+psycopg://tollgate:change-me@postgres")
    assert config.clickhouse.dsn.startswith("http://tollgate:change-me@clickhouse:8123")
    assert (config.edge.host, config.edge.port) == ("0.0.0.0", 8080)
    # Without channels of its own it reaches the provider of the `sim` service.
    hosts = {urlsplit(channel.base_url).netloc for channel in channels(config)}
    assert hosts == {"sim:9100"}
    assert ["--host", "0.0.0.0", "--port", "9100"] in [words(c)[2:] for c in commands()]


@pytest.mark.parametrize("command", commands(), ids=lambda command: words(command)[-1])
def test_every_command_exists(command):
    program, *arguments = words(command)
    assert program == "tollgate"
    file = str(COMPOSE / "tollgate.toml")
    arguments = [file if word == "/config/tollgate.toml" else word for word in arguments]
    if arguments[0] == "sim":  # is another program, which reads its own arguments
        ran = subprocess.run([sys.executable, "-m", "services.sim", *arguments[1:], "--help"])
        assert ran.returncode == 0
        return
    ran = CliRunner().invoke(tollgate, [*arguments, "--help"])
    assert ran.exit_code == 0, ran.output


def test_every_part_runs_somewhere():
    told = [words(command) for command in commands()]
    roles = {role for line in told if "--roles" in line for role in line[-1].split(",")}
    assert roles == set(ROLES)
    assert {line[3] for line in told if line[1] != "sim"} == {"migrate", "edge", "meter", "batch"}
