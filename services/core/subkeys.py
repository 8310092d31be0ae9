"""Sub-keys are never wider than their parent: not when they are made, nor after the parent was
narrowed. What a sub-key leaves open is the parent's present value, so that widening the parent
later does not widen it."""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from services.core.addresses import Network, network_of
from services.core.catalog import Key
from services.core.errors import InvalidRequest

MONEY: Final = ("quota_nano", "window_5h_nano", "window_1d_nano", "window_7d_nano")
RATES: Final = ("concurrency", "requests_per_min", "tokens_per_min")
NO_MODEL: Final = ("",)  # a list of models that allows none: no model has this name
NO_ADDRESS: Final = ("0.0.0.0/32",)  # a list of addresses that allows none: nobody calls from it


def narrowed(parent: Key, fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` of a sub-key (as `Key` names them), with the parent's value where they leave it
    open. Raises InvalidRequest, `param` naming the first field that is wider than the parent."""
    out = dict(fields)
    for name in (*MONEY, *RATES, "expires_at"):
        ours, theirs = out.get(name), getattr(parent, name)
        if not ours:
            out[name] = theirs
        elif theirs and ours > theirs:
            raise _wider(name, "more than")
    if out.get("group", parent.group) != parent.group:
        raise _wider("group", "another than")
    if out.get("member_id") not in (None, parent.member_id):
        raise _wider("member_id", "another than")
    out["group"], out["member_id"] = parent.group, parent.member_id
    models = tuple(out.get("models") or parent.models)
    if parent.models and not set(models) <= set(parent.models):
        raise _wider("models", "more than")
    out["models"] = models
    allowed = networks("ip_allow", out.get("ip_allow") or parent.ip_allow)
    outer = [network_of(each) for each in parent.ip_allow]
    for inner in map(network_of, allowed):
        if outer and not any(_within(inner, each) for each in outer):
            raise _wider("ip_allow", "more than")
    out["ip_allow"] = tuple(allowed)
    out["ip_deny"] = _joined(tuple(networks("ip_deny", out.get("ip_deny") or ())), parent.ip_deny)
    return out


def inherited(key: Key, parent: Key) -> Key:
    """The sub-key as it stands now: what its parent lost since it was made is lost for it too.
    Rates and money are not merged: the parent's own bound counts both keys."""
    status = key.status if key.status != "active" else parent.status
    ends = [each for each in (key.expires_at, parent.expires_at) if each is not None]
    models = key.models or parent.models
    if parent.models:
        models = tuple(each for each in models if each in parent.models) or NO_MODEL
    allowed = key.ip_allow or parent.ip_allow
    if parent.ip_allow:
        allowed = _common(allowed, parent.ip_allow) or NO_ADDRESS
    return msgspec.structs.replace(
        key,
        status=status,
        expires_at=min(ends, default=None),
        models=models,
        ip_allow=allowed,
        ip_deny=_joined(key.ip_deny, parent.ip_deny),
    )


def networks(name: str, values: Sequence[str]) -> list[str]:
    """The CIDRs (or single addresses) in one spelling. Raises InvalidRequest with their path."""
    out = []
    for place, value in enumerate(values):
        try:
            out.append(str(network_of(value)))
        except ValueError as ex:
            path = f"{name}[{place}]"
            raise InvalidRequest(f"{path}: {value!r} is no network", param=path) from ex
    return list(dict.fromkeys(out))


def _common(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses in both lists: of two networks that overlap, one lies in the other."""
    found: list[str] = []
    for mine in map(network_of, ours):
        for other in map(network_of, theirs):
            if _within(mine, other):
                found.append(str(mine))
            elif _within(other, mine):
                found.append(str(other))
    return tuple(dict.fromkeys(found))


def _joined(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*ours, *theirs)))


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


def _wider(name: str, than: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {than} its parent key has", param=name)
