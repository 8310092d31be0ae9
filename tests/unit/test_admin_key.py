"""The operator's credential: one per data folder, replaced as a whole."""

import stat
import threading

import pytest

from services.backends.admin_key import AdminKey
from services.backends.settings import ConfigError


def test_it_is_made_once_for_the_operator_alone(tmp_path):
    first = AdminKey(tmp_path).secret()
    assert first.startswith("sk-toll-admin-")
    assert AdminKey(tmp_path).secret() == first
    assert stat.S_IMODE((tmp_path / "admin.key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["admin.key"]


def test_only_the_key_itself_matches(tmp_path):
    key = AdminKey(tmp_path)
    assert key.matches(key.secret())
    for other in (
        "",
        "sk-toll-admin-",
        key.secret() + "x",
        key.secret()[:-1],
        "sk-toll-admin-\u00e9",
    ):
        assert not key.matches(other)


def test_a_new_one_counts_at_once_for_who_looked_before(tmp_path):
    reader = AdminKey(tmp_path)
    old = reader.secret()
    new = AdminKey(tmp_path).rotate()
    assert reader.matches(new)
    assert not reader.matches(old)


def test_a_crowd_that_finds_none_agrees_on_one(tmp_path):
    found = []
    start = threading.Barrier(8)

    def look():
        start.wait()
        found.append(AdminKey(tmp_path).secret())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 < len(found)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot write"):
        AdminKey(tmp_path / "none").secret()
