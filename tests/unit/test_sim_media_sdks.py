"""The openai SDK drives the media half of the simulated provider, whose files can be looked at."""

import base64
import io
import struct
import urllib.request
import wave

import openai
import pytest

from tests import conftest
from tests.parts.sim import sim

__all__ = ["sim"]
pytestmark = [
    pytest.mark.part("openai-sdk"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the SDK's own methods
]


@pytest.fixture
def gpt(sim):
    conftest.PARTS["openai-sdk"] = openai.__version__
    return openai.OpenAI(base_url=sim.base_url + "/v1", api_key="sk-1", max_retries=0)


def png_size(data):
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(struct.pack(">I", 0) + b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


def test_images_have_the_size_and_number_asked_for(sim, gpt):
    made = gpt.images.generate(model="sim-image", prompt="a toll booth", n=2, size="320x200")
    first, second = (base64.b64decode(image.b64_json) for image in made.data)
    assert png_size(first) == png_size(second) == (320, 200)
    assert first != second
    again = gpt.images.generate(model="sim-image", prompt="a toll booth", size="320x200")
    assert base64.b64decode(again.data[0].b64_json) == first
    assert made.usage.total_tokens > 0
    assert sim.media_jobs(provider="openai-images")[0]["units"] == {"images": 2}


def test_an_edit_depends_on_its_image(gpt):
    asked = {"model": "sim-image", "prompt": "make it blue", "size": "64x64"}
    one = gpt.images.edit(image=[("a.png", b"one"), ("b.png", b"two")], **asked)
    other = gpt.images.edit(image=[("a.png", b"one")], **asked)
    assert one.data[0].b64_json != other.data[0].b64_json


def test_an_image_by_url_is_fetched_without_a_key(sim, gpt):
    made = gpt.images.generate(
        model="sim-image", prompt="by url", size="64x64", response_format="url"
    )
    with urllib.request.urlopen(made.data[0].url, timeout=10) as reply:
        assert reply.headers["content-type"] == "image/png"
        assert png_size(reply.read()) == (64, 64)


def test_speech_is_a_tone_and_its_transcription_gives_the_text_back(sim, gpt):
    said = "The barrier opens once for each toll."
    sound = gpt.audio.speech.create(
        model="sim-speech", voice="alloy", input=said, response_format="wav"
    ).read()
    with wave.open(io.BytesIO(sound)) as file:
        seconds = file.getnframes() / file.getframerate()
        assert any(file.readframes(1000))
    assert seconds == pytest.approx(len(said) / 15, abs=0.01)
    heard = gpt.audio.transcriptions.create(model="sim-transcribe", file=("a.wav", sound))
    assert heard.text == said
    assert heard.usage.seconds == 3
    verbose = gpt.audio.transcriptions.create(
        model="sim-transcribe", file=("a.wav", sound), response_format="verbose_json"
    )
    assert verbose.segments[0].text == said
    srt = gpt.audio.transcriptions.create(
        model="sim-transcribe", file=("a.wav", sound), response_format="srt"
    )
    assert "--> 00:00:02,467" in srt
    assert gpt.audio.translations.create(model="sim-transcribe", file=("a.wav", sound)).text == said


def test_mp3_is_what_speech_is_made_of_by_default(gpt):
    sound = gpt.audio.speech.create(model="sim-speech", voice="alloy", input="hello").read()
    frames = len(sound) / 104
    assert frames == int(frames) > 5
    assert all(sound[i : i + 2] == b"\xff\xfb" for i in range(0, len(sound), 104))


def test_a_video_is_queued_polled_downloaded_listed_and_deleted(sim, gpt):
    asked = "a barrier sim:queue-ms 20 sim:run-ms 200"
    first = gpt.videos.create(model="sora-2", prompt=asked, seconds="4", size="1280x720")
    assert first.status in ("queued", "in_progress")
    done = gpt.videos.poll(first.id, poll_interval_ms=50)
    assert (done.status, done.progress, done.seconds) == ("completed", 100, "4")
    film = gpt.videos.download_content(first.id).read()
    assert film[4:8] == b"ftyp"
    assert png_size(gpt.videos.download_content(first.id, variant="thumbnail").read()) == (
        1280,
        720,
    )
    assert first.id in [video.id for video in gpt.videos.list(limit=1)]
    assert gpt.videos.delete(first.id).deleted
    with pytest.raises(openai.NotFoundError):
        gpt.videos.retrieve(first.id)
    job = sim.media_jobs(provider="openai-videos")[0]
    assert (job["state"], job["served"], job["units"]) == ("succeeded", 1, {"seconds": 4})


def test_embeddings_are_unit_vectors_in_both_encodings(gpt):
    asked = {"model": "sim-embed", "input": ["one", "two"], "dimensions": 16}
    packed = gpt.embeddings.create(**asked)  # the SDK asks for base64
    plain = gpt.embeddings.create(**asked, encoding_format="float")
    assert [len(entry.embedding) for entry in packed.data] == [16, 16]
    assert plain.data[1].embedding == pytest.approx(packed.data[1].embedding, rel=1e-6)
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1.0)
    assert plain.usage.total_tokens == 2


def test_what_is_moderated_or_wrong_is_a_typed_error(gpt):
    with pytest.raises(openai.BadRequestError) as refused:
        gpt.images.generate(model="sim-job-moderated", prompt="x")
    assert refused.value.code == "moderation_blocked"
    with pytest.raises(openai.BadRequestError) as wrong:
        gpt.images.generate(model="sim-image", prompt="x", size="big")
    assert wrong.value.param == "size"
    with pytest.raises(openai.RateLimitError):
        gpt.videos.create(model="sim-create-429", prompt="once")
    assert gpt.videos.create(model="sim-create-429", prompt="once").id
