"""Reading JSON that others wrote: request bodies strictly, answers leniently."""

import json
import re
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec

from schemas.errors import Code
from services.core.errors import InvalidRequest

T = TypeVar("T")

MODEL_CHARACTERS: Final = 256
LABEL_CHARACTERS: Final = 256

ModelName: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MODEL_CHARACTERS)]
_Nothing: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=0)]
Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]

_AT: Final = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")
_ESCAPE: Final = re.compile(
    rb"(\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u[dD][89a-fA-F]..", re.DOTALL
)
_BYTE: Final = re.compile(r"JSON is malformed: (.*) \(byte (\d+)\)")


def read_request(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """The request in `body`. Raises `InvalidRequest` with the JSON path of the wrong field.

    Half a surrogate pair in a string is let through: it is the upstream's to refuse."""
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return decoder.decode(_without_half_pairs(body))
    except msgspec.ValidationError as ex:
        raise _wrong_field(str(ex)) from None
    except msgspec.DecodeError as ex:
        raise _not_json(str(ex)) from None
    except UnicodeDecodeError as ex:
        raise InvalidRequest(f"the body is not valid UTF-8 at byte {ex.start}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def request_decoder(body: type[T]) -> "msgspec.json.Decoder[T]":
    """Of requests whose `model` is a member of that name alone: a server that ignores case would
    serve what `Model` says, and `model` would be billed."""
    spellings = map("".join, product(*((letter, letter.upper()) for letter in "model")))
    others = {f"other_{n}": name for n, name in enumerate(spellings) if name != "model"}
    fields = [(field, _Nothing, "") for field in others]
    return msgspec.json.Decoder(
        msgspec.defstruct(body.__name__, fields, bases=(body,), rename=others)
    )


def need_items(raw: msgspec.Raw, field: str) -> bytes:
    """The JSON text of an array with at least one item. Raises `InvalidRequest`."""
    text = bytes(raw).strip()
    if not text.startswith(b"["):
        raise InvalidRequest(f"{field}: expected array, got {_kind(text)}", param=field)
    if text[1:].lstrip().startswith(b"]"):
        raise InvalidRequest(f"{field}: at least one item is required", param=field)
    return text


def need_text_or_array(raw: msgspec.Raw, field: str) -> bytes:
    """The JSON text of a string or an array, neither of them empty. Raises `InvalidRequest`, for
    `raw` of no bytes too: a field that is missing."""
    text = bytes(raw).strip()
    if not text:
        raise InvalidRequest(f"{field}: field required", param=field)
    if not text.startswith(b'"'):
        return need_items(raw, field)
    if text == b'""':
        raise InvalidRequest(f"{field}: expected a string of length >= 1", param=field)
    return text


def models_of(choices: object) -> list[object]:
    """The models in a list of names, or of objects with a `model`."""
    if type(choices) is not list:
        return []
    return [each.get("model") if type(each) is dict else each for each in choices]


def need_one_model(field: str, model: str, others: Iterable[object]) -> None:
    """A request is allowed and billed by one model. Raises `InvalidRequest` when `field` names
    another that the upstream would call as well, or instead."""
    for other in others:
        if type(other) is str and other != model:
            raise InvalidRequest(
                f"{field}: {other[:MODEL_CHARACTERS]!r} is not the model asked for",
                param=field,
                code=Code.UNSUPPORTED_FEATURE,
            )


def label(*values: object) -> str:
    """The first text among `values`, cut to a bounded length; empty without one."""
    for value in values:
        if isinstance(value, str) and value:
            return value[:LABEL_CHARACTERS]
    return ""


def first_header(headers: Mapping[str, str], *names: str) -> str:
    return label(*(headers.get(name) for name in names))


def json_value(text: bytes) -> Any:
    """The JSON value in `text`, read as leniently as clients do: a byte order mark, NaN, and
    strings with half a surrogate pair or bytes that are no UTF-8, which become replacement
    characters.

    Raises ValueError when it is none."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return json.loads(_without_half_pairs(text).decode("utf-8-sig", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_object(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`, an empty one when it is anything else."""
    try:
        value = json_value(text)
    except (ValueError, RecursionError):
        return {}
    return value if type(value) is dict else {}


def child(source: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object under `name`, an empty one when there is none."""
    value = source.get(name)
    return value if type(value) is dict else {}


def children(source: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects in the array under `name`."""
    value = source.get(name)
    return [item for item in value if type(item) is dict] if type(value) is list else []


def text_of(source: Mapping[str, Any], name: str) -> str:
    """The string under `name`, empty when there is none."""
    value = source.get(name)
    return value if type(value) is str else ""


def error_in(value: object) -> tuple[str, str] | None:
    """(type, message) of the value under `error` in an answer, None when it tells of none."""
    if not value:
        return None
    if type(value) is dict:
        kind = label(value.get("type"), value.get("code"), value.get("status"))
        return kind or "error", label(value.get("message")) or "no message"
    return "error", label(value) or "no message"


def _without_half_pairs(text: bytes) -> bytes:
    """JSON text in which every escaped half of a surrogate pair is a replacement character."""
    return _ESCAPE.sub(lambda match: match[1] or rb"\ufffd", text)


def _wrong_field(message: str) -> InvalidRequest:
    match = _AT.fullmatch(message)
    what, path = (match["what"], match["path"] or "") if match else (message, "")
    missing = _MISSING.fullmatch(what)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidRequest(f"{path}: field required", param=path)
    if path != "model" and path.lower() == "model":
        return InvalidRequest(f"{path}: the name of this member is `model`", param=path)
    what = what.replace("`", "")
    if not path:
        return InvalidRequest("the body must be a JSON object")
    return InvalidRequest(f"{path}: {what[:1].lower()}{what[1:]}", param=path)


def _not_json(message: str) -> InvalidRequest:
    match = _BYTE.fullmatch(message)
    if match:
        return InvalidRequest(f"the body is not valid JSON: {match[1]} at byte {match[2]}")
    return InvalidRequest(f"the body is not valid JSON: {message[:1].lower()}{message[1:]}")


def _kind(text: bytes) -> str:
    kinds = {b"{": "object", b'"': "str", b"n": "null", b"t": "bool", b"f": "bool"}
    return kinds.get(text[:1], "number")
