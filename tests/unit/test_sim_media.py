"""The media half of the simulated provider: faults of downloads, what it tells about itself."""

import http.client
import json
import math
import shutil
import struct
import subprocess
import time
import zlib
from urllib.parse import urlsplit

import pytest

from services.sim.media import h264, knobs, mp3, mp4, multipart, png, sound
from services.sim.media.jobs import KEPT_JOBS, Ask, JobStore
from services.sim.media.picture import COLUMNS, ROWS, draw
from tests.parts.sim import Sim

IDENTITY = bytes(range(7, 39))


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sim")
    prices = folder / "prices.json"
    prices.write_text('{"sim-video": {"seconds": "100000"}, "sim-image": {"images": 40000}}')
    quick = ("--media-queue-ms", "0", "--media-run-ms", "0", "--prices", str(prices))
    running = Sim(folder / "sim.log", *quick)
    yield running
    running.stop()


def call(sim, method, path, body=None, **headers):
    """(status, headers, body, whether it came whole)"""
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=20)
    headers.setdefault("authorization", "Bearer sk-1")
    try:
        raw = json.dumps(body) if isinstance(body, dict) else body
        told = {name: value for name, value in headers.items() if value is not None}
        connection.request(method, path, raw, told)
        reply = connection.getresponse()
        try:
            return reply.status, reply.headers, reply.read(), True
        except http.client.IncompleteRead as cut:
            return reply.status, reply.headers, cut.partial, False
    finally:
        connection.close()


def job(sim, prompt="x", model="sim-image", kind="image", **given):
    given = {"prompt": prompt, "size": "64x64", **given}
    body = {"model": model, "kind": kind, "client_ref": "r-1", "input": given}
    status, _, raw, _ = call(sim, "POST", "/generic/v1/jobs", body)
    assert status == 202, raw
    return json.loads(raw)["job"]


def fetch(sim, made, number=0):
    """The file of a finished job, as `call` gives it."""
    told = json.loads(call(sim, "GET", f"/generic/v1/jobs/{made['id']}")[2])["job"]
    return call(sim, "GET", urlsplit(told["results"][number]["url"]).path, authorization=None)


# -- downloads -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 410, 403, 500])
def test_a_download_can_fail_for_ever_or_a_few_times(sim, status):
    made = job(sim, f"sim:fault artifact-{status}")
    assert [fetch(sim, made)[0] for _ in range(3)] == [status] * 3
    made = job(sim, f"sim:fault artifact-{status}-2")
    assert [fetch(sim, made)[0] for _ in range(3)] == [status, status, 200]


def test_a_truncated_download_says_more_than_it_sends(sim):
    made = job(sim, "sim:fault artifact-truncated-1")
    _, headers, half, whole = fetch(sim, made)
    assert not whole
    assert len(half) < int(headers["content-length"])
    assert fetch(sim, made)[3]


def test_useless_files_come_in_proper_http(sim):
    short = fetch(sim, job(sim, "sim:fault artifact-short"))
    page = fetch(sim, job(sim, "sim:fault artifact-wrong-type"))
    empty = fetch(sim, job(sim, "sim:fault artifact-empty"))
    assert [each[0] for each in (short, page, empty)] == [200, 200, 200]
    assert short[2].startswith(b"\x89PNG")
    assert not short[2].endswith(b"IEND\xaeB`\x82")
    assert page[1]["content-type"] == "image/png"
    assert page[2].startswith(b"<!doctype html>")
    assert empty[2] == b""


def test_redirects(sim):
    made = job(sim, "sim:fault artifact-redirect-2")
    answers = [fetch(sim, made) for _ in range(3)]
    assert [each[0] for each in answers] == [302, 302, 200]
    private = fetch(sim, job(sim, "sim:fault artifact-private"))
    assert private[1]["location"].startswith("http://169.254.169.254/")


def test_slow_and_unmeasured_downloads_come_whole(sim):
    for fault in ("artifact-slow-1", "artifact-no-length"):
        _, headers, data, whole = fetch(sim, job(sim, f"sim:fault {fault}"))
        assert whole
        assert headers["transfer-encoding"] == "chunked"
        assert data.endswith(b"IEND\xaeB`\x82")


def test_a_huge_download_does_not_end(sim):
    made = job(sim, "sim:fault artifact-huge")
    told = json.loads(call(sim, "GET", f"/generic/v1/jobs/{made['id']}")[2])["job"]
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=20)
    connection.request("GET", urlsplit(told["results"][0]["url"]).path)
    assert len(connection.getresponse().read(20_000_000)) == 20_000_000
    connection.close()


def test_no_credential_is_refused_in_each_vendors_shape(sim):
    for path, where in (
        ("/v1/videos", "error"),
        ("/v1beta/models/veo:predictLongRunning", "error"),
        ("/v1/predictions", "detail"),
        ("/fal/a/b", "detail"),
        ("/generic/v1/jobs", "problem"),
    ):
        status, _, raw, _ = call(sim, "POST", path, {}, authorization=None)
        assert status == 401
        assert where in json.loads(raw)


# -- the oracle ------------------------------------------------------------------------------


def test_what_it_would_charge(sim):
    film = job(sim, model="sim-video", kind="video", duration=3)
    call(sim, "GET", f"/generic/v1/jobs/{film['id']}")
    told = sim.get(f"/sim/media/jobs/{film['id']}")
    assert (told["state"], told["charged"], told["units"]) == ("succeeded", True, {"seconds": 3})
    assert told["charge_usd"]["total"] == "0.3"
    partial = job(sim, "sim:fault job-partial-1", num_images=3)
    assert sim.get(f"/sim/media/jobs/{partial['id']}")["units"] == {"images": 2}
    for fault in ("job-fail", "job-moderated", "job-no-output"):
        told = sim.get(f"/sim/media/jobs/{job(sim, f'sim:fault {fault}')['id']}")
        assert (told["charged"], told["units"], told["charge_usd"]) == (False, {}, None)


def test_lost_work_is_charged_and_refused_work_is_no_job(sim):
    before = sim.get("/sim/media/totals")
    with pytest.raises(http.client.RemoteDisconnected):
        job(sim, "sim:fault create-cut")
    assert sim.media_jobs()[-1]["charged"]
    call(sim, "POST", "/generic/v1/jobs", {"model": "sim-create-400", "input": {"prompt": "x"}})
    after = sim.get("/sim/media/totals")
    assert after["creates"] == before["creates"] + 1
    assert after["refused"] == before["refused"] + 1


def test_what_was_sent_is_known_by_its_hash(sim):
    made = job(sim, "hashed")
    data = fetch(sim, made)[2]
    told = sim.get(f"/sim/media/jobs/{made['id']}")
    assert told["served"] == 1
    assert told["outputs"][0]["sha256"] == told["sent"][0]["sha256"]
    assert told["outputs"][0]["bytes"] == len(data)


def test_counts_and_pages(sim):
    sim.reset()
    ids = [job(sim, f"page {n}")["id"] for n in range(5)]
    call(sim, "POST", f"/generic/v1/jobs/{ids[0]}/cancel")
    totals = sim.get("/sim/media/totals")
    assert (totals["creates"], totals["cancels"], totals["duplicate_refs"]) == (5, 1, ["r-1"])
    first = sim.get("/sim/media/jobs?limit=2")
    rest = sim.get(f"/sim/media/jobs?after={first['last']}")
    assert [each["id"] for each in first["jobs"] + rest["jobs"]] == ids
    assert len(sim.get("/sim/media/jobs?ref=r-1")["jobs"]) == 5
    assert sim.get("/sim/media/jobs?ref=r-2") == {"jobs": [], "last": 0}
    assert sim.get("/sim/media/jobs/g-none") is None


def test_a_stuck_job_can_be_finished_by_hand(sim):
    made = job(sim, "sim:fault job-stuck")
    assert sim.get(f"/sim/media/jobs/{made['id']}")["state"] == "running"
    assert json.loads(call(sim, "POST", f"/sim/media/finish/{made['id']}")[2])["charged"]
    assert fetch(sim, made)[0] == 200


def test_the_log_of_calls_names_jobs_and_operations(sim):
    before = sim.last_id()
    made = job(sim, "logged")
    fetch(sim, made)
    entries = sim.wait_for_calls(3, after=before)
    assert [entry["operation"] for entry in entries] == ["create", "poll", "fetch"]
    assert {entry["job"] for entry in entries} == {made["id"]}
    assert {entry["dialect"] for entry in entries} == {"generic"}


# -- jobs ------------------------------------------------------------------------------------


def store(queue_s=0.0, run_s=0.0):
    return JobStore(0, queue_s, run_s)


ASK = Ask(operation="image", model="m", prompt="p", mime="image/png", width=8, height=8)


def test_a_state_follows_from_the_time():
    made = store(queue_s=1.0, run_s=2.0).add("v", ASK, knobs.Knobs(), "{}", False)
    states = [made.state(made.created + after) for after in (0, 0.9, 1.1, 2.9, 3.1)]
    assert states == ["queued", "queued", "running", "running", "succeeded"]
    assert [made.progress(made.created + after) for after in (0, 2, 4)] == [0, 50, 99]
    stuck = store().add("v", ASK, knobs.Knobs({"job-stuck": 0}), "{}", False)
    assert math.isinf(stuck.ends)
    assert stuck.state(time.time() + 1e9) == "running"


def test_a_fault_strikes_as_often_as_told():
    made = store().add("v", ASK, knobs.Knobs({"poll-500": 2, "artifact-404": 0}), "{}", False)
    assert [made.strikes("poll-500") for _ in range(4)] == [True, True, False, False]
    assert all(made.strikes("artifact-404") for _ in range(5))
    assert not made.strikes("poll-429")


def test_jobs_are_bounded(monkeypatch):
    monkeypatch.setattr("services.sim.media.jobs.KEPT_JOBS", 10)
    kept = store()
    made = [kept.add("v", ASK, knobs.Knobs(), "{}", False) for _ in range(25)]
    assert [each.seq for each in kept.all()] == list(range(16, 26))
    assert kept.get(made[0].id) is None
    assert kept.totals["creates"] == 25
    assert KEPT_JOBS >= 100_000


def test_knobs():
    assert knobs.read("gpt-image-2", "", "", "sim:run-ms 5 sim:queue-ms 7") == ({}, 7, 5)
    assert knobs.read("sim-poll-500-3+artifact-404", "", "", "").faults == {
        "poll-500": 3,
        "artifact-404": 0,
    }
    assert knobs.read("m", "poll-cut, job-fail", "", "").faults == {"poll-cut": 2, "job-fail": 0}
    assert knobs.read("m", "", "sim-create-500-done", "").faults == {"create-500-done": 0}
    assert knobs.read("m", "", "", "a sim:fault create-500-2 b").faults == {"create-500": 2}
    for model in ("poll-500", "sim-video", "sim-poll-5000x"):
        assert knobs.read(model, "", "", "sim:fault nonsense").faults == {}


# -- files -----------------------------------------------------------------------------------


def test_pixels_show_the_picture():
    picture = draw(IDENTITY)
    raw = png.encode(picture, COLUMNS * 4, ROWS * 2)
    at = raw.index(b"IDAT")
    size = struct.unpack(">I", raw[at - 4 : at])[0]
    pixels = zlib.decompress(raw[at + 4 : at + 4 + size])
    width = 1 + COLUMNS * 2
    for y in range(ROWS):
        row = pixels[2 * y * width : (2 * y + 1) * width]
        shown = [row[1 + 2 * x] >> 4 for x in range(COLUMNS)]
        assert shown == list(picture.cells[y])


def test_pictures_differ_by_what_was_asked():
    assert draw(IDENTITY) == draw(IDENTITY)
    assert draw(IDENTITY) != draw(bytes(reversed(IDENTITY)))
    assert draw(IDENTITY, 1).cells[2] != draw(IDENTITY).cells[2]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (1280, 720), (50, 34), (16, 16), (719, 9)])
def test_a_film_plays(width, height, tmp_path):
    """Decoded frame by frame where a decoder is installed; its boxes add up in any case."""
    film = mp4.encode(IDENTITY, width, height, 1.5)
    at, kinds = 0, []
    while at < len(film):
        size, kind = struct.unpack_from(">I4s", film, at)
        kinds.append(kind)
        at += size
    assert (at, kinds) == (len(film), [b"ftyp", b"moov", b"mdat"])
    assert b"\x00\x00\x00" not in h264.key_frame(draw(IDENTITY), width, height, 0)
    if shutil.which("ffmpeg") is None:
        return
    path = tmp_path / "film.mp4"
    path.write_bytes(film)
    raw = subprocess.run(
        ["ffmpeg", "-v", "warning", "-i", path, "-f", "rawvideo", "-pix_fmt", "gray", "-"],
        capture_output=True,
        check=True,
    )
    assert raw.stderr == b""
    even = (width + width % 2) * (height + height % 2)
    assert len(raw.stdout) == 6 * even
    assert len(set(raw.stdout[:even])) <= 5  # exactly the palette


def test_sounds():
    tone = sound.wav(IDENTITY, 0.5, "what was said")
    assert sound.hear(tone) == (0.5, "what was said")
    assert sound.hear(b"x" * 16_000) == (1.0, "")
    assert len(sound.pcm(IDENTITY, 1.0)) == 48_000
    assert len(mp3.encode(IDENTITY, 1.0)) % 104 == 0


def test_forms():
    body = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\xc3\xa9\r\n'
        b'--b\r\nContent-Disposition: form-data; name="image[]"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n\x00\r\n--\xff\r\n"
        b'--b\r\nContent-Disposition: form-data; filename="b"; name="image[]"\r\n\r\n\r\n--b--\r\n'
    )
    form = multipart.parse("multipart/form-data; boundary=b", body)
    assert form == ({"model": "mé"}, {"image": [b"\x00\r\n--\xff", b""]})
    assert multipart.parse("application/json", b"{}") is None
