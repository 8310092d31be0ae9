"""OpenAI audio: speech, transcriptions and translations, answered at once. No client reference."""

import math
from hashlib import sha256
from typing import Any, Final

from services.sim.media import made, multipart, sound
from services.sim.media.jobs import Ask, Job
from services.sim.media.openai_images import policy, refuse
from services.sim.media.shape import (
    Call,
    Reply,
    Route,
    Vendor,
    body_of,
    json_reply,
    text_in,
)
from services.sim.prompt import BadRequest

_MIMES: Final = {"mp3": "audio/mpeg", "wav": "audio/wav", "pcm": "audio/pcm"}
_CHARACTERS_PER_S: Final = 15
_SPEECH_MAX_S: Final = 60.0
SPEECH: Final = Vendor(name="openai-speech", id_form="speech_{}", refuse=refuse, policy=policy)
TRANSCRIPTION: Final = Vendor(
    name="openai-transcription", id_form="transcript_{}", refuse=refuse, policy=policy
)


def spoken_s(text: str, speed: float = 1.0) -> float:
    """How long a text takes to say."""
    return min(_SPEECH_MAX_S, max(0.2, len(text) / _CHARACTERS_PER_S / speed))


def _speech(call: Call) -> Ask:
    body = body_of(call)
    text = text_in(body, "input")
    mime = _MIMES.get(body.get("response_format") or "mp3")
    if mime is None:
        raise BadRequest("The simulated provider makes mp3, wav and pcm.", "response_format")
    if body.get("stream_format", "audio") != "audio":
        raise BadRequest("Streamed speech is not simulated.", "stream_format")
    text_in({"voice": str(body.get("voice", ""))}, "voice")
    return Ask(
        operation="speech",
        model=text_in(body, "model"),
        prompt=text,
        mime=mime,
        seconds=spoken_s(text, float(body.get("speed", 1.0))),
        units={"characters": len(text)},
        inputs=str(body.get("voice")).encode(),
    )


def _spoken(call: Call, job: Job) -> Reply:
    if not job.outputs:
        return Reply(200, b"", job.ask.mime)
    return Reply(200, made.spoiled(job, 0), job.ask.mime)


def _transcription(call: Call) -> Ask:
    form = multipart.parse(call.request.headers.get("content-type", ""), call.request.body)
    if form is None or "file" not in form.files:
        raise BadRequest("Missing required parameter: 'file'.", "file")
    data = form.files["file"][0]
    heard = sound.hear(data)
    digest = sha256(data)
    said = heard.text or f"The simulated provider heard sound {digest.hexdigest()[:6]}."
    return Ask(
        operation="transcription",
        model=text_in(form.fields, "model"),
        prompt=said + " " + form.fields.get("prompt", ""),
        seconds=heard.seconds,
        units={"seconds": math.ceil(heard.seconds)},
        inputs=digest.digest(),
        more={"text": said, "format": form.fields.get("response_format", "json")},
    )


def _heard(call: Call, job: Job) -> Reply:
    text, form = job.ask.more["text"] if job.outputs else "", job.ask.more["format"]
    whole, milli = divmod(round(job.ask.seconds * 1000), 1000)
    end = f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
    if form == "text":
        return Reply(200, text.encode() + b"\n", "text/plain; charset=utf-8")
    if form == "srt":
        lines = f"1\n00:00:00,000 --> {end},{milli:03}\n{text}\n\n"
        return Reply(200, lines.encode(), "text/plain; charset=utf-8")
    if form == "vtt":
        lines = f"WEBVTT\n\n00:00:00.000 --> {end}.{milli:03}\n{text}\n\n"
        return Reply(200, lines.encode(), "text/plain; charset=utf-8")
    usage = {"type": "duration", "seconds": math.ceil(job.ask.seconds)}
    told: dict[str, Any] = {"text": text, "usage": usage}
    if form == "verbose_json":
        segment = {"id": 0, "seek": 0, "start": 0.0, "end": job.ask.seconds, "text": text}
        rest = {"tokens": [], "temperature": 0.0, "avg_logprob": -0.1, "compression_ratio": 1.0}
        told |= {"task": "transcribe", "language": "english", "duration": job.ask.seconds}
        told["segments"] = [{**segment, **rest, "no_speech_prob": 0.0}] if text else []
    return json_reply(200, told)


def _route(vendor: Vendor, path: str, read: Any, reply: Any) -> Route:
    return Route(
        vendor=vendor,
        method="POST",
        path=path,
        operation="create",
        read=read,
        reply=reply,
        at_once=True,
    )


ROUTES: Final = (
    _route(SPEECH, "/v1/audio/speech", _speech, _spoken),
    _route(TRANSCRIPTION, "/v1/audio/(?:transcriptions|translations)", _transcription, _heard),
)
