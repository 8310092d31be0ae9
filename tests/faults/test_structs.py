"""Threads that decode the same structs for the first time, at once."""

import subprocess
import sys

# Of many structs, because the moment in which one is described is short.
PROGRAM = """
import sys, threading, msgspec
from services.backends import lifecycle

sys.setswitchinterval(1e-7)
parts = [msgspec.defstruct(f"Part{n}", [(f"a{i}", int, 0) for i in range(20)]) for n in range(1500)]
wholes = [
    msgspec.defstruct(f"Whole{n}", [(f"f{i}", part | None, None) for i in range(20)])
    for n, part in enumerate(parts)
]
body = msgspec.json.encode({f"f{i}": {"a19": 1} for i in range(20)})
together = threading.Barrier(4)

def read(stop):
    for whole in wholes:
        together.wait()
        for _ in range(5):
            assert msgspec.json.decode(body, type=whole).f19.a19 == 1
    stop.set()

sys.exit(lifecycle.run_threads({str(n): read for n in range(4)}, threading.Event(), drain_s=9))
"""


def test_threads_decode_what_nobody_has_decoded_before():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
