"""The load generator: wrk, stopped so that no request is in flight at the end.

wrk cuts what is in flight when its time is over, so a gateway would have served, and rightly
billed, answers that nobody counted. The Lua script parks each connection after the time given and,
when all are parked, interrupts wrk: the answers counted are the answers given.
"""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

_SCRIPT = """
local ffi = require("ffi")
ffi.cdef[[
typedef struct { long sec; long usec; } bench_time;
int gettimeofday(bench_time *t, void *zone);
int getpid(void);
int kill(int pid, int signal);
]]
local t = ffi.new("bench_time")
local function now()
  ffi.C.gettimeofday(t, nil)
  return tonumber(t.sec) + tonumber(t.usec) / 1e6
end
wrk.method = "POST"
wrk.path = %(path)s
wrk.headers["content-type"] = "application/json"
%(headers)s
local file = io.open(%(body_file)s, "rb")
wrk.body = file:read("*a")
file:close()
local parked, threads = 0, {}
began, ended = 0, 0
function setup(thread) table.insert(threads, thread) end
function delay()
  if began == 0 then began = now() end
  if now() - began < %(seconds)s then return 0 end
  parked = parked + 1
  ended = now()
  if parked >= %(connections)d then ffi.C.kill(ffi.C.getpid(), 2) end
  return 1000000000
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\\nBENCH {"answers":%%d,"not_ok":%%d,"errors":%%d,"seconds":%%f,"p50_us":%%f,"p99_us":%%f}\\n',
    summary.requests, e.status, e.connect + e.read + e.write + e.timeout,
    threads[1]:get("ended") - threads[1]:get("began"),
    latency:percentile(50), latency:percentile(99)))
end
"""


class Load(NamedTuple):
    """`answers` counts all responses, `not_ok` those that are not 2xx or 3xx."""

    answers: int
    not_ok: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def served(self) -> int:
        return self.answers - self.not_ok

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return self.served / self.seconds


def version() -> str:
    told = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return " ".join(told.stdout.split()[1:2])


def run(
    folder: Path,
    base_url: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
    connections: int,
    seconds: float,
) -> Load:
    """One run of one thread. `base_url` is http://host:port; `path` starts with a slash."""
    body_file, script = folder / "body.json", folder / "load.lua"
    body_file.write_bytes(body)
    lines = [f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in headers.items()]
    script.write_text(
        _SCRIPT
        % {
            "path": json.dumps(path),
            "headers": "\n".join(lines),
            "body_file": json.dumps(str(body_file)),
            "seconds": seconds,
            "connections": connections,
        }
    )
    limit_s = int(seconds) + 30  # for answers that are slow to come; the script ends it before
    command = ["wrk", "-t1", f"-c{connections}", f"-d{limit_s}s", "--timeout", "30s"]
    told = subprocess.run(
        [*command, "--latency", "-s", str(script), base_url],
        capture_output=True,
        text=True,
        check=True,
        timeout=limit_s + 30,
    )
    found = [line for line in told.stdout.splitlines() if line.startswith("BENCH ")]
    if not found:
        raise RuntimeError(f"wrk told nothing: {told.stdout[-500:]}{told.stderr[-500:]}")
    raw = json.loads(found[0][6:])
    return Load(
        answers=raw["answers"],
        not_ok=raw["not_ok"],
        errors=raw["errors"],
        seconds=raw["seconds"],
        p50_ms=raw["p50_us"] / 1000,
        p99_ms=raw["p99_us"] / 1000,
    )
