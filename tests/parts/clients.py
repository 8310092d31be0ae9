"""The pinned Claude Code and Codex binaries, each run in a clean home and without the network.

Their homes lie in `.cache/homes`: Codex refuses a home in the system's temporary folder."""

import json
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import PARTS, part_missing

ROOT = Path(__file__).parent.parent.parent
BIN = ROOT / ".cache" / "clients" / "node_modules" / ".bin"
HOMES = ROOT / ".cache" / "homes"
TIMEOUT_S = 90
# Whatever a client wants from elsewhere fails at once, loopback is reached directly.
NO_NETWORK = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}


class Ran(NamedTuple):
    code: int
    stdout: str
    stderr: str
    took_s: float

    def json(self):
        return json.loads(self.stdout)

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]


class Client:
    """One client in one home. `run` gives it a prompt and waits for its end."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.home = home
        self.work = home / "work"
        self.work.mkdir(parents=True)

    def run(self, *arguments: str, timeout_s: float = TIMEOUT_S, **environment: str) -> Ran:
        path = f"{Path(shutil.which('node') or '/usr/bin/node').parent}:/usr/bin:/bin"
        clean = {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", **NO_NETWORK}
        began = time.monotonic()
        done = subprocess.run(
            [str(BIN / self.name), *arguments],
            cwd=self.work,
            env={**clean, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


class ClaudeCode(Client):
    def ask(self, base_url: str, prompt: str, *arguments: str, **environment: str) -> Ran:
        """`claude -p PROMPT`; the credential comes in the environment."""
        settings = {
            "ANTHROPIC_BASE_URL": base_url,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
        }
        return self.run("-p", prompt, *arguments, **{**settings, **environment})


class Codex(Client):
    def ask(self, base_url: str, key: str, prompt: str, *arguments: str) -> Ran:
        """`codex exec --json PROMPT` with the gateway as its model provider."""
        folder = self.home / ".codex"
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(
            f"""model_provider = "tollgate"
[model_providers.tollgate]
name = "Tollgate"
base_url = {json.dumps(base_url)}
env_key = "TOLLGATE_KEY"
wire_api = "responses"
[analytics]
enabled = false
"""
        )
        fixed = ("exec", "--json", "--skip-git-repo-check")
        # Nothing is asked back and the command runs where the test runs: a container as a rule.
        free = ("--dangerously-bypass-approvals-and-sandbox",)
        return self.run(*fixed, *free, *arguments, prompt, TOLLGATE_KEY=key)


def _version(name: str) -> str:
    if not (BIN / name).exists():
        part_missing(_PARTS[name], "not installed: run scripts/install-clients")
    done = subprocess.run(
        [str(BIN / name), "--version"], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        part_missing(_PARTS[name], done.stderr[-300:])
    return done.stdout.strip()


_PARTS = {"claude": "claude-code", "codex": "codex"}


def _in_a_new_home(kind: type[Client], name: str):
    PARTS[_PARTS[name]] = _version(name)
    home = HOMES / uuid.uuid4().hex[:12]
    yield kind(name, home)
    if not os.environ.get("TOLLGATE_KEEP_HOMES"):
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def claude_code():
    yield from _in_a_new_home(ClaudeCode, "claude")


@pytest.fixture
def codex():
    yield from _in_a_new_home(Codex, "codex")
