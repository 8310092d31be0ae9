"""The type and facts of a generated file from its bytes; whatever is cut off is refused.

`tests/golden/media` holds a second of a test picture and half a second of a tone, as a common
encoder writes them."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.artifacts import ArtifactFacts, ArtifactInvalid, inspect, inspect_pcm

MEDIA = Path(__file__).parent.parent / "golden" / "media"
PICTURES = {
    "picture.png": "image/png",
    "picture.jpg": "image/jpeg",
    "picture.gif": "image/gif",
    "lossy.webp": "image/webp",
    "lossless.webp": "image/webp",
    "animated.webp": "image/webp",
}
FILMS = {
    "film.mp4": "video/mp4",
    "film.mov": "video/quicktime",
    "film.webm": "video/webm",
}
SOUNDS = {
    "sound.wav": "audio/wav",
    "sound.mp3": "audio/mpeg",
    "sound.flac": "audio/flac",
    "sound.ogg": "audio/ogg",
    "sound.opus": "audio/ogg",
    "sound.m4a": "audio/mp4",
    "sound.aac": "audio/aac",
}
# A cut between two frames or fragments leaves a shorter file of these, which nothing tells.
CUT_UNSEEN = {"sound.aac", "fragmented.mp4", "fragments.mp4", "live.webm"}


def facts_of(data):
    return inspect(data, len(data))


def reason_of(data):
    with pytest.raises(ArtifactInvalid) as refused:
        facts_of(data)
    return refused.value.reason


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name):
    data = (MEDIA / name).read_bytes()
    expected = ArtifactFacts(
        mime=PICTURES[name], kind="image", bytes=len(data), width=48, height=32
    )
    assert facts_of(data) == expected


@pytest.mark.parametrize("name", FILMS)
def test_films(name):
    data = (MEDIA / name).read_bytes()
    facts = facts_of(data)
    assert (facts.mime, facts.kind) == (FILMS[name], "video")
    assert (facts.width, facts.height, facts.duration_ms) == (48, 32, 1000)


@pytest.mark.parametrize("name", ["fragmented.mp4", "fragments.mp4"])
def test_the_length_of_fragments_is_that_of_their_samples(name):
    facts = facts_of((MEDIA / name).read_bytes())
    assert (facts.mime, facts.width, facts.duration_ms) == ("video/mp4", 48, 1000)


def test_a_film_that_was_written_as_it_was_made_lasts_to_its_last_picture():
    facts = facts_of((MEDIA / "live.webm").read_bytes())
    assert (facts.mime, facts.width, facts.duration_ms) == ("video/webm", 48, 800)


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds(name):
    data = (MEDIA / name).read_bytes()
    facts = facts_of(data)
    assert (facts.mime, facts.kind, facts.bytes) == (SOUNDS[name], "audio", len(data))
    assert 500 <= facts.duration_ms <= 580  # compressed sound has whole frames


def test_a_sound_that_was_told_as_it_was_made_lasts_to_its_last_frame():
    """An encoder that writes FLAC into a pipe does not know the number of samples: it tells 0."""
    data = bytearray((MEDIA / "sound.flac").read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    facts = facts_of(bytes(data))
    assert (facts.mime, 500 <= facts.duration_ms <= 600) == ("audio/flac", True)
    assert reason_of(bytes(data[:-1])) == "truncated"


@pytest.mark.parametrize("name", [*PICTURES, *FILMS, *SOUNDS, *sorted(CUT_UNSEEN)])
def test_every_cut_is_refused(name):
    data = (MEDIA / name).read_bytes()
    unseen = []
    for length in range(len(data)):
        try:
            facts_of(data[:length])
            unseen.append(length)
        except ArtifactInvalid:
            pass
    assert len(unseen) <= (10 if name in CUT_UNSEEN else 0)


@pytest.mark.parametrize("name", [*PICTURES, *FILMS, *SOUNDS])
def test_a_file_on_disk_is_read_in_place(name):
    path = MEDIA / name
    with path.open("rb") as file:
        assert inspect(file, path.stat().st_size) == facts_of(path.read_bytes())


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_give_facts_or_a_named_error(data):
    name = data.draw(st.sampled_from([*PICTURES, *FILMS, *SOUNDS, *sorted(CUT_UNSEEN)]))
    raw = bytearray((MEDIA / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, min(len(raw), 4000) - 1))] = data.draw(st.integers(0, 255))
    try:
        facts = facts_of(bytes(raw))
    except ArtifactInvalid:
        return
    assert facts.bytes == len(raw)


@settings(max_examples=300, deadline=None)
@given(
    raw=st.binary(max_size=400), mark=st.sampled_from([b"", b"RIFF....WAVE", b"OggS", b"GIF89a"])
)
def test_arbitrary_bytes_never_pass_as_something_else_than_they_claim(raw, mark):
    try:
        facts_of(mark + raw)
    except ArtifactInvalid:
        pass


@pytest.mark.parametrize(
    "page",
    [
        b"<!doctype html><html>bad gateway</html>",
        b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>',
        b'{"error": "not found"}',
        b"%PDF-1.7",
        b"\x00" * 64,
    ],
)
def test_pages_and_scripts_are_no_artifacts(page):
    assert reason_of(page) == "unknown_type"


def test_nothing_is_empty():
    assert reason_of(b"") == "empty"


def png(width, height, pixels):
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_png_must_have_all_of_its_pixels():
    assert facts_of(png(2, 2, bytes(14))).width == 2
    assert reason_of(png(2, 2, bytes(7))) == "truncated"
    assert reason_of(png(2, 2, bytes(14_000))) == "truncated"
    assert reason_of(png(0, 2, bytes(2))) == "malformed"


def test_a_png_that_unpacks_without_end_is_stopped():
    bomb = png(10, 10, bytes(50_000_000))
    assert len(bomb) < 100_000
    assert reason_of(bomb) == "truncated"
    assert reason_of(png(60_000, 60_000, b"")) == "malformed"


def test_wrong_checksums_are_seen():
    raw = bytearray(png(2, 2, bytes(14)))
    raw[45] ^= 1
    assert reason_of(bytes(raw)) == "malformed"


def test_a_streamed_wav_may_leave_its_length_open():
    raw = bytearray((MEDIA / "sound.wav").read_bytes())
    at = raw.index(b"data") + 4
    raw[at : at + 4] = b"\xff\xff\xff\xff"
    assert facts_of(bytes(raw)).duration_ms == 500


def test_raw_samples():
    assert inspect_pcm(48_000).duration_ms == 1000
    for size in (0, 3):
        with pytest.raises(ArtifactInvalid):
            inspect_pcm(size)


def test_a_large_film_is_not_read_whole():
    film = (MEDIA / "film.mp4").read_bytes()

    class Counting(io.BytesIO):
        read_bytes = 0

        def read(self, size=-1):
            found = super().read(size)
            self.read_bytes += len(found)
            return found

    grown = film + struct.pack(">I", 8 + 50_000_000) + b"free" + bytes(50_000_000)
    file = Counting(grown)
    assert inspect(file, len(grown)).duration_ms == 1000
    assert file.read_bytes < 10_000
