"""The bytes of a job's outputs."""

from typing import Final

from services.sim.media import mp3, mp4, png, sound
from services.sim.media.jobs import Job
from services.sim.media.picture import draw

EXTENSIONS: Final = {
    "image/png": "png",
    "video/mp4": "mp4",
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/pcm": "pcm",
}
HTML: Final = b"<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>\n"


def output(job: Job, index: int) -> bytes:
    """Output `index` of a job that succeeds, as it should be."""
    ask, identity = job.ask, job.identity(index)
    if ask.mime == "image/png":
        return png.encode(draw(identity), ask.width, ask.height)
    if ask.mime == "video/mp4":
        return mp4.encode(identity, ask.width, ask.height, ask.seconds)
    if ask.mime == "audio/wav":
        return sound.wav(identity, ask.seconds, ask.prompt)
    if ask.mime == "audio/mpeg":
        return mp3.encode(identity, ask.seconds)
    return sound.pcm(identity, ask.seconds)


def spoiled(job: Job, index: int) -> bytes:
    """Output `index` with what the job's faults do to its bytes."""
    if job.strikes("artifact-empty"):
        return b""
    if job.strikes("artifact-wrong-type"):
        return HTML
    whole = output(job, index)
    return whole[: len(whole) // 2] if job.strikes("artifact-short") else whole
