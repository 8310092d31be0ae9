"""Artifacts: links, ranges, how long they are kept."""

import time
from types import SimpleNamespace

import pytest
from sqlalchemy import update

from schemas.config import Artifacts
from services.backends import settings
from services.backends.sql import job_tables
from services.backends.sql.engine import write
from services.batch.links import LinkSigner
from tests.parts.job_routes import code


def test_links_work_without_a_key_until_they_are_over_or_altered(house):
    job = house.wait_for(house.submit("sim-image")["id"])
    path = job["output"][0]["url"].removeprefix("http://gateway.test")
    status, data = house.call("GET", path, raw=True)
    assert (status, len(data)) == (200, job["output"][0]["bytes"])
    assert data.startswith(b"\x89PNG")
    assert house.headers["etag"] == f'"{job["output"][0]["sha256"]}"'
    assert house.call("GET", path[:-2] + "xx")[0] == 403
    assert house.call("GET", path.replace("e=1", "e=2"))[0] == 403
    assert house.call("GET", path.replace("/a/art_0", "/a/art_1"))[0] == 403
    assert house.call("GET", path.replace("k=1", "k=2"))[0] == 403
    assert house.call("GET", path.replace("k=1", "k=9"))[0] == 403
    artifact = SimpleNamespace(id=job["output"][0]["artifact_id"], expires_at=2**60)
    secret, hour_us = settings.load_secret(house.folder), 3600 * 10**6
    config = Artifacts(url_lifetime_s=3600)
    for age_us, expected in ((0, 200), (2 * hour_us, 403)):
        clock = SimpleNamespace(now_us=lambda age_us=age_us: time.time_ns() // 1000 - age_us)
        query, _ = LinkSigner(secret, clock, config).query(artifact)
        assert house.call("GET", f"/a/{artifact.id}?{query}", raw=True)[0] == expected


def test_links_of_the_key_before_work_while_it_is_changed():
    artifact = SimpleNamespace(id="art_1", expires_at=2**60)
    clock = SimpleNamespace(now_us=lambda: 10**15)
    signers = [LinkSigner(b"secret", clock, Artifacts(link_key=number)) for number in range(1, 5)]
    taken = []
    for signing in signers:
        query, _ = signing.query(artifact)
        until, number, signature = (part.partition("=")[2] for part in query.split("&"))
        given = (artifact.id, until, number, signature)
        taken.append([checking.is_good(*given) for checking in signers])
    assert taken == [  # by its key and the one after; by the one before, which may be older
        [True, True, False, False],
        [True, True, True, False],
        [False, True, True, True],
        [False, False, True, True],
    ]


def test_what_was_kept_long_enough_is_gone_and_its_bill_stays(house):
    job = house.wait_for(house.submit("sim-image")["id"])
    artifact = job["output"][0]
    mine = job_tables.artifact.c.id == artifact["artifact_id"]
    over = update(job_tables.artifact).where(mine).values(expires_at=1)
    write(house.engine, lambda c: c.execute(over))
    path = artifact["url"].removeprefix("http://gateway.test")
    for place in (path, f"/v1/artifacts/{artifact['artifact_id']}/content"):
        assert code(house.call("GET", place)) == (410, "artifact_expired")
    assert house.job(job["id"])["cost"] == job["cost"]
    house.check()


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=10-", 206, slice(10, None)),
        ("Bytes=0-0", 206, slice(0, 1)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("bytes=5-2", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("bytes=99999999-", 416, slice(0, 0)),
    ],
)
def test_ranges(house, asked, status, part):
    artifact = house.wait_for(house.submit("sim-image")["id"])["output"][0]
    path = f"/v1/artifacts/{artifact['artifact_id']}/content"
    whole = house.call("GET", path, raw=True)[1]
    found = house.call("GET", path, headers={"range": asked}, raw=True)
    assert found == (status, whole[part])
    stale = house.call("GET", path, headers={"range": asked, "if-range": '"old"'}, raw=True)
    assert stale == (200, whole)
