"""OpenAI images, speech and transcriptions: answered at once, no client reference, no look-up."""

import base64
import binascii
import math
from typing import Any, Final

import msgspec

from services.batch.providers.at_once import AtOnce
from services.batch.providers.calls import (
    ask,
    at,
    bearer,
    image_type,
    only_bytes,
    unreadable,
    url_of,
)
from services.batch.providers.port import (
    CreateAnswer,
    Done,
    Http,
    NotSent,
    Order,
    Output,
    Refused,
    Reply,
    Traits,
    Unclear,
)
from services.core.artifacts import ArtifactInvalid, inspect
from services.core.catalog import Channel

MODERATED: Final = ("moderation_blocked", "content_policy_violation")


def refused(answer: NotSent | Unclear | Refused) -> CreateAnswer:
    """With the message and the verdict of OpenAI's error envelope."""
    if not isinstance(answer, Refused):
        return answer
    try:
        error = at(msgspec.json.decode(answer.message.encode()), "error")
    except (msgspec.DecodeError, RecursionError):
        return answer
    message = at(error, "message") or answer.message
    moderated = answer.moderated or at(error, "code") in MODERATED
    return msgspec.structs.replace(answer, message=str(message), moderated=moderated)


class OpenAI(AtOnce):
    """`base_url` ends in `/v1`."""

    name = "openai"
    kinds = ("image", "speech", "transcription")
    traits = Traits(create_s=600.0, takes_urls=False)

    def headers(self, channel: Channel) -> dict[str, str]:
        return bearer(channel)

    def create(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        if order.kind == "speech":
            return self._speech(http, channel, order)
        if order.kind == "transcription":
            return self._transcription(http, channel, order)
        return self._image(http, channel, order)

    def _ask(self, http: Http, channel: Channel, path: str, **body: Any) -> Any:
        url, timeout_s = url_of(channel, path), self.traits.create_s
        return ask(http, "POST", url, headers=bearer(channel), timeout_s=timeout_s, **body)

    def _image(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        asked = {name: v for name, v in order.params.items() if name not in ("image", "mask")}
        asked["model"] = order.model
        if not order.params.get("image"):
            reply = self._ask(http, channel, "images/generations", json=asked)
        elif problem := only_bytes(order, "image", "mask"):
            return problem
        else:
            form = {name: str(value) for name, value in asked.items()}
            files = {
                name: (f"{name}.{image_type(data)[6:]}", data, image_type(data))
                for name, data in order.files.items()
            }
            reply = self._ask(http, channel, "images/edits", form=form, files=files)
        return _images(reply) if isinstance(reply, Reply) else refused(reply)

    def _speech(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        asked = {name: value for name, value in order.params.items() if name != "format"}
        asked |= {"model": order.model, "response_format": order.params.get("format", "mp3")}
        asked.setdefault("voice", "alloy")
        reply = self._ask(http, channel, "audio/speech", json=asked)
        if not isinstance(reply, Reply):
            return refused(reply)
        if reply.headers.get("content-type", "").startswith(("application/json", "text/html")):
            return Unclear(message=unreadable(reply))
        sound = (Output(kind="audio", data=reply.body),) if reply.body else ()
        return Done(outputs=sound)

    def _transcription(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        if problem := only_bytes(order, "file"):
            return problem
        form = {name: str(v) for name, v in order.params.items() if name not in ("file", "format")}
        wanted = str(order.params.get("format", "json"))
        form |= {"model": order.model, "response_format": wanted}
        files = {"file": (_sound_name(order.files["file"]), order.files["file"], "audio/*")}
        reply = self._ask(http, channel, "audio/transcriptions", form=form, files=files)
        if not isinstance(reply, Reply):
            return refused(reply)
        return _transcript(reply, wanted, order.files["file"])


def _images(reply: Reply) -> CreateAnswer:
    data = at(reply.json(), "data")
    if not isinstance(data, list):
        return Unclear(message=unreadable(reply))
    outputs = []
    for entry in data:
        if text := at(entry, "b64_json"):
            try:
                outputs.append(Output(kind="image", data=base64.b64decode(text, validate=True)))
            except (binascii.Error, TypeError, ValueError):
                return Unclear(message="an image that is not base64")
        elif url := at(entry, "url"):
            outputs.append(Output(kind="image", url=str(url)))
    return Done(outputs=tuple(outputs))


def _transcript(reply: Reply, wanted: str, sound: bytes) -> CreateAnswer:
    if wanted not in ("json", "verbose_json"):
        text = (Output(kind="text", data=reply.body),) if reply.body.strip() else ()
        return Done(outputs=text, told=_seconds(_length_s(sound)))
    told = reply.json()
    if not isinstance(at(told, "text"), str):
        return Unclear(message=unreadable(reply))
    seconds = at(told, "usage", "seconds") or at(told, "duration") or _length_s(sound)
    return Done(outputs=(Output(kind="json", data=reply.body),), told=_seconds(seconds))


def _seconds(length_s: Any) -> dict[str, int]:
    """Begun seconds count; nothing when the length is not known."""
    if not isinstance(length_s, int | float) or length_s <= 0:
        return {}
    return {"seconds": math.ceil(length_s)}


def _length_s(sound: bytes) -> float | None:
    """How long the sound is by its own bytes, for replies that do not tell."""
    try:
        length_ms = inspect(sound, len(sound)).duration_ms
    except ArtifactInvalid:
        return None
    return length_ms / 1000 if length_ms is not None else None


def _sound_name(data: bytes) -> str:
    """A file name with the ending that tells the type: OpenAI goes by it."""
    for mark, ending in (
        (b"RIFF", "wav"),
        (b"fLaC", "flac"),
        (b"OggS", "ogg"),
        (b"\x1aE\xdf\xa3", "webm"),
    ):
        if data.startswith(mark):
            return f"sound.{ending}"
    return "sound.mp4" if data[4:8] == b"ftyp" else "sound.mp3"
