"""The object store's contract, on a folder and on a bucket."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.backends import settings
from services.backends.clock import SystemClock
from services.backends.job_wire import PIECE
from services.backends.objects.port import NotStored, StoreUnavailable, TooLarge, chunks_of
from services.backends.settings import load
from services.batch.bootstrap import object_store
from services.edge.jobs.forward import Forwarder
from tests.parts.batch_house import BatchHouse
from tests.parts.s3 import BUCKET, KEYS, S3
from tests.parts.sim import sim  # noqa: F401
from tests.parts.sqlite import migrated_url


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    made = S3(tmp_path_factory.mktemp("s3") / "s3.log")
    yield made
    made.stop()


@pytest.fixture
def on_bucket(bucket, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return {
        "artifacts__store": "s3",
        "artifacts__bucket": BUCKET,
        "artifacts__prefix": "media/",
        "artifacts__endpoint_url": bucket.url,
        "artifacts__region": "us-east-1",
        "artifacts__access_key": "env:AWS_ACCESS_KEY_ID",
        "artifacts__secret_key": "env:AWS_SECRET_ACCESS_KEY",
    }


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    more = request.getfixturevalue("on_bucket") if request.param == "s3" else {}
    return object_store(load(None, {}, data_dir=str(tmp_path), **more))


def kept(store, data: bytes) -> str:
    draft = store.receive(chunks_of(data), len(data))
    store.keep(draft)
    store.drop(draft)
    return draft.sha256


def read(store, sha256, first=0, last=None) -> bytes:
    with store.open(sha256, first, last) as file:
        return file.read() if last is None else file.read(last - first + 1)


def test_bytes_come_out_as_they_went_in(store):
    data = os.urandom(700_000)
    draft = store.receive(chunks_of(data), len(data))
    assert (draft.sha256, draft.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert Path(draft.path).read_bytes() == data, "a draft can be looked into"
    with pytest.raises(NotStored):
        store.open(draft.sha256)
    store.keep(draft)
    store.drop(draft)
    assert read(store, draft.sha256) == data
    assert kept(store, data) == draft.sha256, "the same bytes again change nothing"
    for first, last in ((0, 0), (10, 19), (len(data) - 5, len(data) - 1)):
        assert read(store, draft.sha256, first, last) == data[first : last + 1]
    assert read(store, draft.sha256, 699_990) == data[699_990:]
    assert not store.delete(draft.sha256, idle_s=600.0), "they were kept a moment ago"
    assert read(store, draft.sha256) == data
    for _ in range(2):
        assert store.delete(draft.sha256)
    assert store.delete(draft.sha256, idle_s=600.0)
    with pytest.raises(NotStored):
        store.open(draft.sha256)


def test_what_is_too_large_or_breaks_off_leaves_nothing(store, tmp_path):
    with pytest.raises(TooLarge):
        store.receive([b"1234", b"5678"], 7)

    def broken():
        yield b"1234"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        store.receive(broken(), 100)
    dropped = store.receive([b"1234"], 100)
    store.drop(dropped)
    old = store.receive([b"of a dead process"], 100)
    os.utime(old.path, (1, 1))
    young = store.receive([b"on its way"], 100)
    store.sweep()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "secret.key"]
    assert left == [Path(young.path)]
    assert kept(store, b"") == hashlib.sha256(b"").hexdigest()


def test_many_at_once(store):
    parts = [os.urandom(50_000 + each) for each in range(16)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda data: kept(store, data), parts * 2))
        assert list(pool.map(lambda name: read(store, name), names)) == parts * 2


def test_a_film_goes_through_a_bucket_in_bounded_memory(on_bucket, tmp_path):
    """80 MB up in parts and down again; the process grows by less than half of that."""
    program = f"""
import hashlib, resource, sys
from services.backends.settings import load
from services.backends.sql import migrate
from services.batch.bootstrap import object_store
store = object_store(load(None, {{}}, data_dir={str(tmp_path)!r}, **{on_bucket!r}))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
piece = bytes(range(256)) * 4096
small = store.receive([b"warm"], 4); store.keep(small); store.open(small.sha256).close()
before = peak()
draft = store.receive((piece for _ in range(80)), 80 << 20)
store.keep(draft)
with store.open(draft.sha256) as file:
    assert hashlib.file_digest(file, "sha256").hexdigest() == draft.sha256
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40, done.stdout


HALF = 1 << 17


class Halting(BaseHTTPRequestHandler):
    """A bucket whose answer stops half-way until it may go on."""

    def do_GET(self):
        assert self.headers["range"] == f"bytes=100-{99 + 2 * HALF}"
        self.send_response(206)
        self.send_header("content-length", str(2 * HALF))
        self.end_headers()
        self.wfile.write(b"a" * HALF)
        self.server.may_go_on.wait(30)
        self.wfile.write(b"b" * (HALF if self.server.whole else HALF // 2))

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("whole", [True, False])
def test_bytes_of_a_bucket_are_there_as_they_arrive(on_bucket, tmp_path, whole):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Halting)
    server.may_go_on, server.whole = threading.Event(), whole
    threading.Thread(target=server.serve_forever, daemon=True).start()
    on_bucket["artifacts__endpoint_url"] = f"http://127.0.0.1:{server.server_port}"
    store = object_store(load(None, {}, data_dir=str(tmp_path), **on_bucket))
    try:
        with store.open("ab" * 32, 100, 99 + 2 * HALF) as file:
            assert file.read(HALF) == b"a" * HALF
            assert not server.may_go_on.is_set()
            server.may_go_on.set()
            if whole:
                assert file.read() == b"b" * HALF
            else:
                with pytest.raises(StoreUnavailable):
                    file.read()
    finally:
        server.shutdown()
        server.server_close()


def test_a_bucket_that_is_away_or_none_of_ours_is_told(on_bucket, tmp_path, bucket):
    draft_of = {}
    for name, change in (
        ("away", {"artifacts__endpoint_url": "http://127.0.0.1:9"}),
        ("none", {"artifacts__bucket": "no-such-bucket"}),
    ):
        store = object_store(load(None, {}, data_dir=str(tmp_path / name), **on_bucket | change))
        draft_of[name] = store.receive([b"bytes"], 10)
        for act in (store.keep, lambda draft, store=store: store.open(draft.sha256)):
            with pytest.raises(StoreUnavailable):
                act(draft_of[name])
    with pytest.raises(settings.ConfigError, match=r"artifacts\.bucket"):
        load(None, {}, artifacts__store="s3")
    assert all(name.startswith("media/") for name in bucket.names())


def test_bytes_that_changed_in_the_bucket_are_not_kept(on_bucket, tmp_path, bucket, monkeypatch):
    store = object_store(load(None, {}, data_dir=str(tmp_path), **on_bucket))
    draft = store.receive([b"as they were"], 100)
    real = store._client.upload_file

    def spoilt(path, where, key, **more):
        real(path, where, key, **more)
        bucket.client.put_object(Bucket=where, Key=key, Body=b"as they are")

    monkeypatch.setattr(store._client, "upload_file", spoilt)
    with pytest.raises(StoreUnavailable, match="does not hold"):
        store.keep(draft)


def test_the_library_is_loaded_for_a_bucket_only(tmp_path):
    program = (
        "import sys; import services.batch.bootstrap as b; from services.backends.settings import"
        f" load; b.object_store(load(None, {{}}, data_dir={str(tmp_path)!r}));"
        " print('boto3' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.stdout == "False\n", told.stderr


def slow_reader(house):
    """A large sound, read through the edge's part: what its reader has not taken lies nowhere but
    in the bucket."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes(os.urandom(6 * PIECE))
    form = b"--x\r\ncontent-disposition: form-data; name=file; filename=a.wav\r\n\r\n"
    form += sound.getvalue() + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    who = {"account_id": house.account.id, "key_id": house.key.id}
    made = house.client.call("POST", "/v1/files", **who, headers=headers, body=form).body()

    def spooled():
        """Bytes of the files without a name that the service has open."""
        found = 0
        for each in Path(f"/proc/{house.running().pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += each.stat().st_size if "(deleted)" in str(each.readlink()) else 0
        return found

    forwarder = Forwarder(SimpleNamespace(batch=house.client, on_look=[], clock=SystemClock()))
    req = SimpleNamespace(get_header=lambda name: None, scheme="http", netloc="gateway.test")
    caller = SimpleNamespace(key=house.key)
    path = f"/v1/files/{json.loads(made)['id']}/content"
    found = forwarder.ask(req, "GET", path, caller, b"")
    assert (found.status, found.headers["content-type"]) == (200, "audio/wav")
    assert int(found.headers["content-length"]) == len(sound.getvalue())
    pieces = found.pieces()
    taken = next(pieces)
    for _ in range(40):
        assert spooled() <= PIECE
        time.sleep(0.02)
    assert taken + b"".join(pieces) == sound.getvalue()
    assert forwarder.ask(req, "GET", path, caller, b"").body() == sound.getvalue()
    stored = f"/internal/stored/{hashlib.sha256(sound.getvalue()).hexdigest()}?first=0&size=1"
    assert house.call("GET", stored)[0] == 404, "but for the edge itself"


def test_what_a_job_made_lies_in_the_bucket_and_comes_out_in_ranges(
    on_bucket,
    tmp_path,
    bucket,
    sim,  # noqa: F811
    monkeypatch,
):
    for name, value in on_bucket.items():
        monkeypatch.setenv(f"TOLLGATE_{name.upper()}", value)
    monkeypatch.setenv("TOLLGATE_TEST_UPSTREAM", "upstream-secret")
    house = BatchHouse(tmp_path / "data", migrated_url(tmp_path), sim.base_url)
    try:
        house.start()
        made = house.wait_for(house.submit("sim-image")["id"])["output"][0]
        stored = bucket.client.get_object(Bucket=BUCKET, Key=f"media/{made['sha256']}")
        whole = stored["Body"].read()
        path = f"/v1/artifacts/{made['artifact_id']}/content"
        assert house.call("GET", path, raw=True) == (200, whole)
        for asked, part in (("bytes=0-0", whole[:1]), ("bytes=100-", whole[100:])):
            found = house.call("GET", path, headers={"range": asked}, raw=True)
            assert found == (206, part)
        bucket.client.delete_object(Bucket=BUCKET, Key=f"media/{made['sha256']}")
        assert house.call("GET", path)[0] == 500
        house.check()
        slow_reader(house)
    finally:
        house.close()
