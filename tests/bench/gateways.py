"""The gateways of a bench, each with one worker: start, ask, memory, stop.

A gateway that cannot be installed or started is named in the report with its error; nothing is
measured in its place.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.bench import nginx
from tests.bench.answers import ANSWERS, DIALECT_PATHS, MODELS, Case
from tests.bench.nginx import Nginx
from tests.bench.process import cpu_s, family, free_port, memory_mb, stop, wait_for_http

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "bench"
UPSTREAM_KEY = "sk-upstream-of-the-bench"


class Unavailable(Exception):
    """This gateway cannot run here; the message says why."""


class Gateway:
    """`name`, `version`, `settings` (what was set, for the report)."""

    name = ""
    version = ""
    settings = ""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        self.start_s = 0.0

    def install(self) -> None:
        """Raises Unavailable."""

    def start(self, folder: Path, upstream_port: int) -> None:
        """Returns when it answers. Raises Unavailable."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def path(self, case: Case) -> str:
        return case.path

    def headers(self, case: Case) -> dict[str, str]:
        return {}

    def serving(self) -> list[psutil.Process]:
        """The processes on the request path."""
        return family(self.process.pid) if self.process else []

    def behind(self) -> list[psutil.Process]:
        """The processes of the same product off the request path."""
        return []

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)

    def _spawn(self, folder: Path, command: list[str], env: dict[str, str], ready: str) -> None:
        started = time.monotonic()
        log = folder / f"{self.name}.log"
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env={**os.environ, **env}, cwd=folder
            )
        try:
            wait_for_http(self.base_url + ready, self.process)
        except RuntimeError as error:
            self.stop()
            tail = " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
            raise Unavailable(f"{error}: {tail[-300:]}") from error
        self.start_s = time.monotonic() - started


class Direct(Gateway):
    """The load generator on the upstream itself."""

    name = "direct"
    settings = "the canned upstream, no gateway"

    def install(self) -> None:
        self.version = f"nginx {Nginx.version()}"

    def start(self, folder: Path, upstream_port: int) -> None:
        self.port = upstream_port

    def path(self, case: Case) -> str:
        return case.prefix + case.path


class NginxPlain(Gateway):
    name = "nginx-plain"
    settings = "plain reverse proxy: one `proxy_pass` line, 1 worker, no logs"
    proxy = nginx.PLAIN

    def install(self) -> None:
        self.version = Nginx.version()

    def start(self, folder: Path, upstream_port: int) -> None:
        self._nginx = Nginx(folder / self.name, self.proxy, upstream_port)
        self.port, self.process = self._nginx.port, self._nginx.process

    def path(self, case: Case) -> str:
        return case.prefix + case.path


class NginxKeepalive(NginxPlain):
    name = "nginx-keepalive"
    settings = "the same with connections to the upstream kept (`upstream`, `keepalive`, HTTP/1.1)"
    proxy = nginx.KEEPALIVE


class LiteLLM(Gateway):
    name = "litellm"
    settings = "1 worker, master key, no database: nothing is metered"

    def install(self) -> None:
        folder = CACHE / "litellm"
        python = folder / "bin" / "python"
        uv = Path(sys.executable).parent / "uv"
        if not (folder / "bin" / "litellm").exists():
            _run([str(uv), "venv", "-q", "--python", sys.executable, str(folder)])
            _run([str(uv), "pip", "install", "-q", "--python", str(python), "litellm[proxy]"])
        code = "import importlib.metadata as m; print(m.version('litellm'))"
        self.version = _run([str(python), "-c", code]).strip()

    def start(self, folder: Path, upstream_port: int) -> None:
        models = []
        for (dialect, kind), model in MODELS.items():
            if kind not in ANSWERS:
                continue
            base = f"http://127.0.0.1:{upstream_port}/{dialect}-{kind}"
            vendor = "anthropic" if dialect == "anthropic" else "openai"
            params = {
                "model": f"{vendor}/{model}",
                "api_base": base if dialect == "anthropic" else base + "/v1",
                "api_key": UPSTREAM_KEY,
            }
            models.append({"model_name": model, "litellm_params": params})
        config = folder / "litellm.json"  # JSON is YAML
        config.write_text(
            json.dumps(
                {"model_list": models, "general_settings": {"master_key": "sk-bench-master"}}
            )
        )
        command = [str(CACHE / "litellm" / "bin" / "litellm"), "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--num_workers", "1"]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        self._spawn(folder, command, env, "/health/liveliness")

    def headers(self, case: Case) -> dict[str, str]:
        return {"authorization": "Bearer sk-bench-master", "anthropic-version": "2023-06-01"}


class Portkey(Gateway):
    name = "portkey"
    settings = "node, 1 process, headless: no keys, nothing is metered"
    _package = CACHE / "portkey" / "node_modules" / "@portkey-ai" / "gateway"

    def install(self) -> None:
        if shutil.which("npm") is None:
            raise Unavailable("npm is not installed")
        if not self._package.exists():
            folder = CACHE / "portkey"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text('{"private": true}')
            _run(["npm", "install", "--no-audit", "--no-fund", "@portkey-ai/gateway"], folder)
        self.version = json.loads((self._package / "package.json").read_text())["version"]

    def start(self, folder: Path, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        start = str(self._package / "build" / "start-server.js")
        env = {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1", "NODE_ENV": "production"}
        self._spawn(folder, ["node", start, "--headless", f"--port={self.port}"], env, "/")

    def headers(self, case: Case) -> dict[str, str]:
        vendor = "anthropic" if case.dialect == "anthropic" else "openai"
        base = f"http://127.0.0.1:{self._upstream_port}{case.prefix}/v1"
        return {
            "x-portkey-provider": vendor,
            "x-portkey-custom-host": base,
            "x-api-key": UPSTREAM_KEY,
            "authorization": f"Bearer {UPSTREAM_KEY}",
            "anthropic-version": "2023-06-01",
        }


def channels(upstream_port: int, streams_port: int) -> list[dict]:
    """Tollgate's channels: one for each kind of answer, and one for slow streams."""
    slow = {
        "name": "slow",
        "dialect": "anthropic",
        "base_url": f"http://127.0.0.1:{streams_port}",
        "credential": "env:BENCH_UPSTREAM_KEY",
        "models": [MODELS["anthropic", "slow"]],
    }
    return [
        slow,
        *(
            {
                **slow,
                "name": f"{dialect}-{kind}",
                "dialect": dialect,
                "base_url": f"http://127.0.0.1:{upstream_port}/{dialect}-{kind}",
                "models": [MODELS[dialect, kind]],
            }
            for dialect in DIALECT_PATHS
            for kind in ANSWERS
        ),
    ]


def _run(command: list[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=590, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-2:]
        raise Unavailable(" ".join(told)[-300:]) from error
    return done.stdout


def used(gateway: Gateway) -> dict[str, float]:
    """Memory in MB and CPU seconds so far, of the request path and of what is behind it."""
    serving, behind = gateway.serving(), gateway.behind()
    return {
        "memory_mb": memory_mb(serving),
        "behind_memory_mb": memory_mb(behind),
        "cpu_s": cpu_s(serving),
        "behind_cpu_s": cpu_s(behind),
    }
