"""From a management body to what the catalog takes; its refusals by the names of the wire."""

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET

from schemas.management import Body, KeyFields, MemberFields
from services.core.addresses import BadNetwork, networks
from services.core.errors import InvalidRequest
from services.core.money import nano_of
from services.core.routing import ModelIndex

Shape = TypeVar("Shape", bound=Body)

DAY_US: Final = 86_400 * 1_000_000
EVERY_MODEL: Final = "*"

# Name on the wire -> the catalog's.
NAMES: Final = {
    "quota": "quota_nano",
    "rate_limit_5h": "window_5h_nano",
    "rate_limit_1d": "window_1d_nano",
    "rate_limit_7d": "window_7d_nano",
    "ip_whitelist": "ip_allow",
    "ip_blacklist": "ip_deny",
    "custom_key": "custom_secret",
    "expires_in_days": "expires_at",
    "model_caps": "caps_nano",
}
_WIRE: Final = {ours: wire for wire, ours in NAMES.items()}
_MONEY: Final = ("quota", "rate_limit_5h", "rate_limit_1d", "rate_limit_7d")
_AS_IT_IS: Final = ("name", "concurrency", "requests_per_min", "tokens_per_min", "email", "role")
_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_FIELD: Final = re.compile(r"field `(?P<name>.*)`$", re.DOTALL)


def parsed(raw: bytes, shape: type[Shape]) -> Shape:
    """The body as `shape`; an empty one has no field. Raises InvalidRequest, `param` the path of
    the wrong field."""
    try:
        return msgspec.json.decode(raw or b"{}", type=shape)
    except msgspec.ValidationError as ex:
        match = _AT.match(str(ex))
        what, path = (match["what"], match["path"] or "") if match else (str(ex), "")
        field = _FIELD.search(what)
        if field is not None:
            path = f"{path}.{field['name']}" if path else field["name"]
        raise InvalidRequest(f"{path or 'the body'}: {what}", param=path or None) from ex
    except (msgspec.DecodeError, UnicodeDecodeError) as ex:
        raise InvalidRequest(f"the body is not JSON: {ex}") from ex
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def key_fields(body: KeyFields, index: ModelIndex, now_us: int) -> dict[str, Any]:
    """What `create_key` and `update_key` take, only of the fields that were sent."""
    found = _plain(body)
    for name in _MONEY:
        value = getattr(body, name)
        if value is not UNSET:
            found[NAMES[name]] = usd(value, name)
    for name in ("ip_whitelist", "ip_blacklist"):
        value = getattr(body, name)
        if value is not UNSET:
            found[NAMES[name]] = addresses(value, name)
    if body.models is not UNSET:
        found["models"] = canonical(body.models, index)
    if body.expires_in_days is not UNSET:
        days = body.expires_in_days
        found["expires_at"] = None if days is None else now_us + days * DAY_US
    group = body.group if body.group is not UNSET else body.group_id
    if group is not UNSET:
        found["group"] = group
    return found


def member_fields(body: MemberFields, index: ModelIndex) -> dict[str, Any]:
    """What `create_member` and `update_member` take, only of the fields that were sent."""
    found = _plain(body)
    if body.quota is not UNSET:
        found["quota_nano"] = usd(body.quota, "quota")
    if body.models is not UNSET:
        found["models"] = granted(body.models, index)
    if body.model_caps is not UNSET:
        found["caps_nano"] = {
            canonical([name], index, f"model_caps.{name}")[0]: usd(value, f"model_caps.{name}")
            for name, value in body.model_caps.items()
        }
    return found


def usd(value: Decimal | None, path: str) -> int | None:
    """Nano-USD of a limit; None for no limit. Raises InvalidRequest."""
    if value is None:
        return None
    nano = amount(value, path, least_nano=0)
    return nano or None


def amount(value: Decimal, path: str, least_nano: int = 1) -> int:
    """Nano-USD. Raises InvalidRequest."""
    try:
        nano = nano_of(value)
    except ValueError as ex:
        raise InvalidRequest(f"{path}: {ex}", param=path) from ex
    if nano < least_nano:
        least = "0 or more" if least_nano == 0 else "more than 0"
        raise InvalidRequest(f"{path}: write {least}", param=path)
    return nano


def addresses(texts: Iterable[str], path: str) -> tuple[str, ...]:
    """Addresses and networks as the catalog keeps them. Raises InvalidRequest."""
    found: list[str] = []
    for at, text in enumerate(texts):
        try:
            found += networks([text]).texts
        except BadNetwork as ex:
            raise InvalidRequest(f"{path}[{at}]: {ex}", param=f"{path}[{at}]") from ex
    return tuple(found)


def granted(names: Iterable[str], index: ModelIndex) -> tuple[str, ...]:
    """As `canonical`; `*` stands for every model."""
    listed = list(names)
    return (EVERY_MODEL,) if EVERY_MODEL in listed else canonical(listed, index)


def canonical(names: Iterable[str], index: ModelIndex, path: str = "") -> tuple[str, ...]:
    """The models' canonical ids, each once. Raises InvalidRequest for a name that means none."""
    found: dict[str, None] = {}
    for at, name in enumerate(names):
        model = index.resolve(name)
        if model is None:
            where = path or f"models[{at}]"
            raise InvalidRequest(f"{where}: no model is named {name!r}", param=where)
        found[model.model] = None
    return tuple(found)


def on_the_wire(ex: InvalidRequest) -> InvalidRequest:
    """A refusal of the catalog, by the names of the wire."""
    wire = _WIRE.get(ex.param or "")
    if wire is None:
        return ex
    message = ex.message.replace(f"{ex.param}:", f"{wire}:", 1)
    return InvalidRequest(message, param=wire, code=ex.code)


def _plain(body: Body) -> dict[str, Any]:
    return {name: value for name in _AS_IT_IS if (value := getattr(body, name, UNSET)) is not UNSET}
