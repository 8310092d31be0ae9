"""The description of an HTTP provider in TOML: requests as templates, replies as JSON pointers.

Nothing in it is evaluated. In a template `{name}` stands for a value; a text that is nothing but
one placeholder becomes that value with its JSON type, and is left out when there is none. Names:
`model`, `kind`, `client_ref`, `params`, `params.NAME`, `input.NAME` (the URL of an input; uploads
as data URLs), `id` and `links.NAME` (once there is a task), `credential` (in `[auth]` only).
Pointers are RFC 6901; `*` stands for every element of a list.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import quote

import msgspec

_PLACE: Final = re.compile(r"\{([a-z_]+(?:\.[a-z_0-9]+)?)\}")
_BEARER: Final = {"authorization": "Bearer {credential}"}
_NAMES: Final = ("model", "kind", "client_ref", "params", "input", "id", "links", "credential")
Word: TypeAlias = Literal["waiting", "running", "done", "failed", "cancelled"]
Kind: TypeAlias = Literal["image", "video", "speech", "transcription", "embedding", "rerank"]


class _Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class Call(_Part, kw_only=True):
    """One request. `path` is behind the channel's base URL."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    path: str
    headers: dict[str, str] = {}
    body: dict[str, Any] | None = None


class Create(Call, kw_only=True):
    """`id`: where the reply names the task; `links`: URLs in it that later calls need."""

    id: str
    links: dict[str, str] = {}
    moderated: list[str] = []  # texts in the body of a refusal by policy


class Poll(Call, kw_only=True):
    """`state` is a pointer to the word that `states` translates; a word that it lacks is a running
    task. `progress` points to a number up to `progress_full`. `outputs` are pointers to URLs or
    base64 by the kind of the task (text for a transcription). `units` point to what the provider
    says it will charge."""

    state: str
    states: dict[str, Word]
    progress: str = ""
    progress_full: float = 100.0
    outputs: dict[Kind, str]
    outputs_need_credential: bool = False
    error_code: str = ""
    error_text: str = ""
    moderated: list[str] = []  # codes of refusals by policy
    units: dict[str, str] = {}


class Find(Call, kw_only=True):
    """`items` points to the list of tasks with our reference, `id` to the name of each."""

    items: str
    id: str


class Description(_Part, kw_only=True):
    name: str
    kinds: list[Kind]
    auth: dict[str, str] = msgspec.field(default_factory=lambda: dict(_BEARER))
    poll_min_s: float = 2.0
    poll_max_s: float = 30.0
    create_s: float = 60.0
    max_age_s: float = 3600.0
    idempotent: bool = False
    create: Create
    poll: Poll
    cancel: Call | None = None  # answered like a poll, or confirmed by one
    find: Find | None = None


class BadDescription(ValueError):
    """The file does not describe a provider; the text names it and what is wrong."""


def load(path: Path) -> Description:
    """Raises BadDescription."""
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=Description)
    except (OSError, msgspec.DecodeError) as ex:
        raise BadDescription(f"{path}: {ex}") from ex
    calls = [found.create, found.poll, found.cancel, found.find]
    texts = list(found.auth.values())
    for call in calls:
        if call is not None:
            texts += [call.path, *call.headers.values(), *_texts(call.body)]
    for text in texts:
        for name in _PLACE.findall(text):
            if name.partition(".")[0] not in _NAMES:
                raise BadDescription(f"{path}: nothing is called {{{name}}}")
    for text in texts[len(found.auth) :]:
        if "{credential}" in text:
            raise BadDescription(f"{path}: {{credential}} stands in [auth] only")
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [text for part in parts for text in _texts(part)]
    return []


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """A body with its placeholders replaced; None where the only one of a text has no value, and
    such members are left out."""
    if isinstance(template, dict):
        filled = {name: fill(part, values) for name, part in template.items()}
        return {name: part for name, part in filled.items() if part is not None}
    if isinstance(template, list):
        return [part for part in (fill(each, values) for each in template) if part is not None]
    if not isinstance(template, str):
        return template
    if whole := _PLACE.fullmatch(template):
        return value_of(values, whole.group(1))
    return _PLACE.sub(lambda found: _text(value_of(values, found.group(1))), template)


def fill_path(template: str, values: Mapping[str, Any]) -> str:
    """A path or query with its placeholders replaced, percent-encoded."""
    return _PLACE.sub(
        lambda found: quote(_text(value_of(values, found.group(1))), safe=""), template
    )


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """The value of a placeholder; None when there is none, or an empty text."""
    first, _, rest = name.partition(".")
    value = values.get(first)
    if rest:
        value = value.get(rest) if isinstance(value, Mapping) else None
    return None if value == "" else value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def pointed(value: Any, pointer: str) -> list[Any]:
    """Everything that a pointer reaches in decoded JSON, in order; null counts as nothing."""
    reached = [value]
    for raw in pointer.split("/")[1:]:
        step = raw.replace("~1", "/").replace("~0", "~")
        following: list[Any] = []
        for each in reached:
            if isinstance(each, list) and step == "*":
                following += each
            elif isinstance(each, list) and step.isdecimal() and int(step) < len(each):
                following.append(each[int(step)])
            elif isinstance(each, dict) and step in each:
                following.append(each[step])
        reached = following
    return [each for each in reached if each is not None]
