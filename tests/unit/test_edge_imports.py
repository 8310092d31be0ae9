"""The edge is imported before the fork and before gevent patches the standard library."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Prints the drivers that are loaded, and which names of ours are things that gevent would replace.
PROBE = """
import json, sys
import services.edge.bootstrap
from gevent import monkey

drivers = [name for name in ("psycopg", "psycopg_c", "kafka", "chdb") if name in sys.modules]
before = {
    (name, key): value
    for name, module in list(sys.modules.items())
    if name.startswith(("services.", "schemas."))
    for key, value in vars(module).items()
    if callable(value)
}
modules = ("threading", "socket", "ssl", "select", "time", "queue", "subprocess", "os", "signal")
plain = {(m, k): v for m in modules if m in sys.modules for k, v in vars(sys.modules[m]).items()}
monkey.patch_all()
replaced = {id(it) for (m, key), it in plain.items() if vars(sys.modules[m]).get(key) is not it}
bound = [f"{name}.{key}" for (name, key), value in before.items() if id(value) in replaced]
print(json.dumps([drivers, sorted(bound)]))
"""


def test_nothing_is_bound_that_gevent_replaces_but_what_asks_for_the_original():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    drivers, bound = json.loads(done.stdout)
    assert drivers == []
    assert bound == ["services.edge.bootstrap._sleep", "services.edge.connection_pool._poll"]
