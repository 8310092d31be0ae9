"""What an open-ended `input` object asks for, at vendors whose models differ in everything."""

import re
from collections.abc import Mapping
from typing import Any, Final

from services.sim.media.jobs import Ask
from services.sim.media.openai_audio import spoken_s
from services.sim.media.shape import count_in, seconds_in, size_in, size_of_ratio, text_in

_VIDEO: Final = re.compile(r"video|veo|sora|kling|seedance|wan-|hailuo|luma", re.I)
_SPEECH: Final = re.compile(r"speech|tts|voice", re.I)
_SHORT_SIDES: Final = {"480p": 480, "720p": 720, "1080p": 1080}


def ask(model: str, given: Mapping[str, Any], kind: str, client_ref: str) -> Ask:
    """The work, its kind guessed from model and input unless it is told. Raises BadRequest."""
    kind = kind or _kind(model, given)
    if kind == "speech":
        text = text_in(given, "text" if "text" in given else "prompt")
        return Ask(
            operation="speech",
            model=model,
            prompt=text,
            mime="audio/wav",
            seconds=spoken_s(text),
            units={"characters": len(text)},
            client_ref=client_ref,
        )
    prompt = text_in(given, "prompt")
    if kind == "video":
        seconds = seconds_in(given, "duration", 5)
        width, height = _size(given, "16:9", 720)
        return Ask(
            operation="video",
            model=model,
            prompt=prompt,
            mime="video/mp4",
            width=width,
            height=height,
            seconds=seconds,
            units={"seconds": round(seconds)},
            client_ref=client_ref,
        )
    count = count_in(given, "num_images" if "num_images" in given else "num_outputs")
    width, height = _size(given, "1:1", 1024)
    return Ask(
        operation="image",
        model=model,
        prompt=prompt,
        mime="image/png",
        count=count,
        width=width,
        height=height,
        units={"images": count},
        client_ref=client_ref,
    )


def _kind(model: str, given: Mapping[str, Any]) -> str:
    if "duration" in given or _VIDEO.search(model):
        return "video"
    if "prompt" not in given or _SPEECH.search(model):
        return "speech"
    return "image"


def _size(given: Mapping[str, Any], ratio: str, short_side: int) -> tuple[int, int]:
    size = given.get("image_size") or given.get("size")
    if isinstance(size, Mapping):
        size = f"{size.get('width')}x{size.get('height')}"
    if size:
        return size_in({"size": size}, "size", "")
    side = _SHORT_SIDES.get(str(given.get("resolution", "")), short_side)
    return size_of_ratio(str(given.get("aspect_ratio") or ratio), side)
