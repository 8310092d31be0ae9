"""docs/accounts.md: its examples run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.management import CreateKey
from services.core.catalog import Key
from services.edge.manage.shapes import key_body

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "accounts.md").read_text("utf-8")
BODIES = re.compile(r"-d '(\{.*?\})'")


def examples():
    return [line[4:] for line in PAGE.splitlines() if line.startswith("    ")]


@pytest.mark.timeout(300)
def test_every_example_runs(stack, tmp_path):
    lines = [line for line in examples() if not line.startswith("url=")]
    assert len(lines) > 40
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "tollgate").write_text(
        f'#!/bin/sh\nexec "{Path(sys.executable).parent}/tollgate" "$@"\n'
    )
    (folder / "tollgate").chmod(0o755)
    # curl fails on an answer of 400 and above, so that the script ends there.
    (folder / "curl").write_text('#!/bin/sh\nPATH=/usr/local/bin:/usr/bin:/bin exec curl -f "$@"\n')
    (folder / "curl").chmod(0o755)
    script = tmp_path / "page.sh"
    head = ["set -euo pipefail", f"url={stack.base_url}"]
    script.write_text("\n".join([*head, *lines]) + "\n")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TOLLGATE_")}
    done = subprocess.run(
        ["bash", "-x", str(script)],
        cwd=ROOT,
        env={
            **kept,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "TOLLGATE_DATA_DIR": str(stack.data_dir),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for word in ("by curl", "robot", "tester", "admin_debit", "credited twice"):
        assert word in done.stdout, word


def test_the_bodies_are_json_and_the_table_names_every_field_of_a_key():
    bodies = BODIES.findall(PAGE)
    assert len(bodies) > 5
    for body in bodies:
        json.loads(body)
    named = set(re.findall(r"`(\w+)`", PAGE)) | {"rate_limit_1d", "rate_limit_7d"}
    assert set(CreateKey.__struct_fields__) <= named
    key = Key(id="", account_id="", name="", masked="", secret_sha256="", group="")
    assert set(CreateKey.__struct_fields__) - set(key_body(key)) == {
        "custom_key", "expires_in_days",
    }  # fmt: skip
