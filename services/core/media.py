"""What a generation asks for: the parameters per kind, their bounds per model, units and holds.

Parameters arrive as JSON and leave in one spelling (`canonical`), so that equal requests have
equal fingerprints and adapters read one set of names. Units: `images` (or `images_<quality>`,
`images_<quality>_<pixels>` where the model has a price of its own for these), `seconds`,
`characters`, `input` tokens, and `calls`, a fee per generation.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from services.core.errors import InvalidRequest
from services.core.prices import ModelPrice

KINDS: Final = ("image", "video", "speech", "transcription", "embedding", "rerank")
MEDIA: Final = ("image", "video", "audio", "text", "json")

_Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=32_000)]
_Token: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Tokens: TypeAlias = Annotated[list[_Token], msgspec.Meta(min_length=1, max_length=32_000)]
_Url: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=1024 * 1024)]
_Word: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
_Seed: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Params(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class ImageParams(_Params, kw_only=True):
    """`image`, `mask`: inputs of an edit, each a URL, a data URL or `file_<id>`; a list has one."""

    prompt: _Text
    n: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    size: Annotated[str, msgspec.Meta(pattern=r"^(auto|\d{2,5}x\d{2,5})?$")] = ""
    aspect_ratio: Annotated[str, msgspec.Meta(pattern=r"^(\d{1,2}:\d{1,2})?$")] = ""
    quality: _Word | Literal[""] = ""
    style: _Word | Literal[""] = ""
    background: _Word | Literal[""] = ""
    negative_prompt: Annotated[str, msgspec.Meta(max_length=32_000)] = ""
    output_format: Literal["", "png", "jpeg", "webp"] = ""
    output_compression: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    seed: _Seed | None = None
    image: _Url | Annotated[list[_Url], msgspec.Meta(max_length=1)] = ""
    mask: _Url | Literal[""] = ""


class VideoParams(_Params, kw_only=True):
    """`image_init`: the first frame, a URL, a data URL or `file_<id>`."""

    prompt: _Text
    duration_seconds: Annotated[int, msgspec.Meta(ge=1, le=600)] = 0
    resolution: Annotated[str, msgspec.Meta(pattern=r"^(\d{3,4}p)?$")] = ""
    aspect_ratio: Annotated[str, msgspec.Meta(pattern=r"^(\d{1,2}:\d{1,2})?$")] = ""
    negative_prompt: Annotated[str, msgspec.Meta(max_length=32_000)] = ""
    style_preset: _Word | Literal[""] = ""
    motion_intensity: Literal["", "low", "medium", "high"] = ""
    seed: _Seed | None = None
    image_init: _Url | Literal[""] = ""


class SpeechParams(_Params, kw_only=True):
    input: Annotated[str, msgspec.Meta(min_length=1, max_length=100_000)]
    voice: _Word = "alloy"
    format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=4)] = 1.0
    instructions: Annotated[str, msgspec.Meta(max_length=32_000)] = ""


class TranscriptionParams(_Params, kw_only=True):
    """`file`: the audio, a URL, a data URL or `file_<id>`."""

    file: _Url
    language: _Word | Literal[""] = ""
    prompt: Annotated[str, msgspec.Meta(max_length=32_000)] = ""
    format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class EmbeddingParams(_Params, kw_only=True):
    """`input`: texts, or texts as their tokens."""

    input: Annotated[list[_Text | _Tokens], msgspec.Meta(min_length=1, max_length=2_048)]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None
    encoding_format: Literal["float", "base64"] = "float"


class RerankParams(_Params, kw_only=True):
    query: _Text
    documents: Annotated[list[_Text], msgspec.Meta(min_length=1, max_length=1_000)]
    top_n: Annotated[int, msgspec.Meta(ge=1, le=1_000)] | None = None


Params: TypeAlias = (
    ImageParams | VideoParams | SpeechParams | TranscriptionParams | EmbeddingParams | RerankParams
)

_SHAPES: Final[dict[str, type[Params]]] = {
    "image": ImageParams,
    "video": VideoParams,
    "speech": SpeechParams,
    "transcription": TranscriptionParams,
    "embedding": EmbeddingParams,
    "rerank": RerankParams,
}
MADE: Final = {  # of MEDIA, by kind: what is delivered, and due
    "image": ("image",),
    "video": ("video",),
    "speech": ("audio",),
    "transcription": ("text", "json"),
    "embedding": ("json",),
    "rerank": ("json",),
}
INPUTS: Final = ("image", "mask", "image_init", "file")  # params that name bytes
BYTES_PER_SECOND: Final = 1_000  # of the thinnest audio: the bound of a transcription's seconds


def canonical(model: ModelPrice, given: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """`given` checked for the model's kind and limits, in one spelling, defaults left out; a
    video's duration is always there.

    Raises InvalidRequest with the path of the wrong field below `where`."""
    try:
        params = msgspec.convert(dict(given), _SHAPES[model.kind])
    except msgspec.ValidationError as ex:
        what, _, path = str(ex).partition(" - at `$")
        raise _wrong(where, path.rstrip("`").lstrip("."), what) from ex
    limits = model.limits
    if isinstance(params, VideoParams):
        if not params.duration_seconds:
            params.duration_seconds = limits.get("seconds_default", limits.get("seconds_max", 5))
        _within(where, "duration_seconds", params.duration_seconds, limits, "seconds", model.model)
        _one_of(where, "resolution", params.resolution, model, "resolutions")
        _one_of(where, "aspect_ratio", params.aspect_ratio, model, "aspect_ratios")
    elif isinstance(params, ImageParams):
        _within(where, "n", params.n, limits, "n", model.model)
        _one_of(where, "size", params.size, model, "sizes")
        _one_of(where, "quality", params.quality, model, "qualities")
    elif isinstance(params, SpeechParams):
        _within(where, "input", len(params.input), limits, "characters", model.model)
    found = msgspec.to_builtins(params)
    assert isinstance(found, dict)
    return found


def fingerprint(model: str, params: Mapping[str, Any]) -> str:
    """Hex SHA-256 of what is asked: equal for equal requests, however they were spelled."""
    body = msgspec.json.encode([model, params], order="deterministic")
    return hashlib.sha256(body).hexdigest()


def units_bound(
    model: ModelPrice, params: Mapping[str, Any], file_bytes: int = 0
) -> dict[str, int]:
    """The most units that `params` can cost. `file_bytes`: size of a transcription's audio."""
    units: dict[str, int] = {"calls": 1} if "calls" in model.classes else {}
    if model.kind == "image":
        units[image_class(model, params)] = int(params.get("n", 1))
    elif model.kind == "video":
        units["seconds"] = int(params["duration_seconds"])
    elif model.kind == "speech":
        units["characters"] = len(params["input"])
    elif model.kind == "transcription":
        bound = min(file_bytes // BYTES_PER_SECOND + 1, model.limits.get("seconds_max", 14_400))
        units["seconds"] = bound
    elif model.kind == "embedding":
        units["input"] = sum(
            len(each.encode()) if isinstance(each, str) else len(each) for each in params["input"]
        )
    elif model.kind == "rerank":
        units.setdefault("calls", 1)
    return units


def image_class(model: ModelPrice, params: Mapping[str, Any]) -> str:
    """The unit class of one image: its quality's own where the model has a price for it, and that
    of its size (`images_high_2048`: with a side of so many pixels or more) where it has one."""
    own = f"images_{params.get('quality', '')}"
    if own not in model.classes:
        return "images"
    longest = max(map(int, re.findall(r"\d+", params.get("size", ""))), default=0)
    sizes = (name.removeprefix(f"{own}_") for name in model.classes if name.startswith(f"{own}_"))
    reached = [int(each) for each in sizes if each.isdecimal() and int(each) <= longest]
    return f"{own}_{max(reached)}" if reached else own


def _within(
    where: str, name: str, value: int, limits: Mapping[str, int], word: str, model: str
) -> None:
    least, most = limits.get(f"{word}_min", 1), limits.get(f"{word}_max")
    if value < least or (most is not None and value > most):
        raise _wrong(where, name, f"{model} takes {least} to {most}, not {value}")


def _one_of(where: str, name: str, value: str, model: ModelPrice, word: str) -> None:
    allowed = model.choices.get(word, [])
    if value and allowed and value not in allowed:
        raise _wrong(where, name, f"{model.model} takes {', '.join(allowed)}, not {value!r}")


def _wrong(where: str, name: str, what: str) -> InvalidRequest:
    path = ".".join(each for each in (where, name) if each)
    return InvalidRequest(f"{path}: {what[:1].lower()}{what[1:]}", param=path)
