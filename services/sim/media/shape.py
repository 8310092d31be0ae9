"""What a vendor's file is made of: routes that read its requests and write its replies."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import orjson

from services.sim.http import Request
from services.sim.media.jobs import Ask, Job, JobStore
from services.sim.media.made import EXTENSIONS
from services.sim.prompt import BadRequest

_SIZE_MAX: Final = 4096
_COUNT_MAX: Final = 10
_SECONDS_MAX: Final = 600.0


class Reply(NamedTuple):
    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Call(NamedTuple):
    """One HTTP call: `parts` are the named parts of its path, `base` the URL in front of the
    vendor's own paths, `now` seconds of the wall clock."""

    request: Request
    parts: Mapping[str, str]
    base: str
    now: float


class Refuse(Protocol):
    """An error in the vendor's shape."""

    def __call__(self, status: int, message: str, code: str = "", param: str = "") -> Reply: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """`policy` is how a create is refused by policy;
    `id_form` has `{}` for 32 hexadecimal digits."""

    name: str
    id_form: str
    refuse: Refuse
    policy: Callable[[], Reply]
    idempotent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`operation` is create (with `read`), poll, cancel, delete or fetch (with `reply`) or find
    (with `search`). `at_once`: the create answers with the result."""

    vendor: Vendor
    method: str
    path: str
    operation: str
    read: Callable[[Call], Ask] | None = None
    reply: Callable[[Call, Job], Reply] | None = None
    search: Callable[[Call, JobStore], Reply] | None = None
    at_once: bool = False

    def match(self, method: str, path: str) -> Mapping[str, str] | None:
        found = re.search(f"(?:{self.path})$", path) if method == self.method else None
        return found.groupdict() if found else None


def json_reply(status: int, value: Any, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    return Reply(status, orjson.dumps(value), headers=headers)


def body_of(call: Call) -> dict[str, Any]:
    """The JSON object of a request. Raises BadRequest."""
    try:
        body = orjson.loads(call.request.body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("We could not parse the JSON body of your request.") from error
    if not isinstance(body, dict):
        raise BadRequest("The body is not a JSON object.")
    return body


def object_in(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An optional object of a body. Raises BadRequest."""
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise BadRequest(f"{name}: Input should be an object", name)
    return value


def text_in(body: Mapping[str, Any], name: str) -> str:
    """A required text of a body. Raises BadRequest."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(
            f"Missing required parameter: '{name}'.", name, "missing_required_parameter"
        )
    return value


def count_in(body: Mapping[str, Any], name: str) -> int:
    """How many outputs are asked for: one when it is not told. Raises BadRequest."""
    value = body.get(name, 1)
    try:
        count = int(value)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"{name}: Input should be an integer", name) from error
    if not 1 <= count <= _COUNT_MAX:
        raise BadRequest(f"{name}: Input should be 1 to {_COUNT_MAX}", name)
    return count


def seconds_in(body: Mapping[str, Any], name: str, default: float) -> float:
    """A length in seconds: a number, or text such as `8` and `8s`. Raises BadRequest."""
    value = body.get(name, default)
    try:
        seconds = float(str(value).removesuffix("s"))
    except ValueError as error:
        raise BadRequest(f"{name}: Input should be a number of seconds", name) from error
    if not 0 < seconds <= _SECONDS_MAX:
        raise BadRequest(f"{name}: Input should be 1 to {_SECONDS_MAX:.0f}", name)
    return seconds


def size_in(body: Mapping[str, Any], name: str, default: str) -> tuple[int, int]:
    """Width and height from `1024x1024`. Raises BadRequest."""
    value = body.get(name) or default
    if value == "auto":
        value = default
    found = re.fullmatch(r"(\d{2,4})[x*](\d{2,4})", str(value))
    if found is None or max(map(int, found.groups())) > _SIZE_MAX:
        raise BadRequest(f"Invalid value: '{value}'.", name, "invalid_value")
    return int(found.group(1)), int(found.group(2))


def size_of_ratio(ratio: str, short_side: int) -> tuple[int, int]:
    """Width and height for an aspect ratio such as `16:9`. Raises BadRequest."""
    found = re.fullmatch(r"(\d{1,2}):(\d{1,2})", ratio)
    if found is None or "0" in found.groups():
        raise BadRequest(f"Invalid aspect ratio: '{ratio}'.", "aspect_ratio")
    across, down = map(int, found.groups())
    longer = short_side * max(across, down) // min(across, down)
    return (longer, short_side) if across >= down else (short_side, longer)


def file_url(call: Call, job: Job, index: int) -> str:
    """Where output `index` can be fetched without a credential."""
    return f"{call.base}/media/files/{job.id}/{index}.{EXTENSIONS[job.ask.mime]}"
