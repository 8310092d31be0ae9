"""Who calls, and whether the key may use the model it asks for."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from schemas.errors import Code
from services.core.addresses import AddressRules, networks
from services.core.catalog import Account, Key, Snapshot
from services.core.errors import InvalidRequest, Refusal
from services.core.keys import sha256_hex
from services.core.prices import ModelPrice
from services.core.rates import Rule
from services.core.routing import ModelIndex

EVERY_MODEL: Final = ("*",)  # of a member: all of its key's group

_CREDENTIAL_MAX: Final = 512
_NAME_MAX: Final = 128
_NEEDED: Final = ("input", "output")


def credentials(headers: Mapping[str, str], query: Mapping[str, str]) -> list[str]:
    """The secrets a request carries, in order of precedence: `x-api-key`, Bearer,
    `x-goog-api-key`, `?key=`. Header names are lower-case."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    offered = (
        headers.get("x-api-key", ""),
        bearer if scheme.lower() == "bearer" else "",
        headers.get("x-goog-api-key", ""),
        query.get("key", ""),
    )
    found: list[str] = []
    for value in offered:
        secret = value.strip()
        if secret and len(secret) <= _CREDENTIAL_MAX and secret not in found:
            found.append(secret)
    return found


def pick_key(snapshot: Snapshot, offered: Sequence[str], now_us: int) -> Key:
    """The first live key among `offered` secrets.

    Raises Refusal for the first of them: INVALID_API_KEY, or PERMISSION_DENIED when its account
    is paused."""
    first: Refusal | None = None
    for secret in offered:
        key = snapshot.keys.get(sha256_hex(secret))
        refusal = _why_not(snapshot, key, now_us)
        if refusal is None and key is not None:
            return key
        first = first or refusal
    raise first or Refusal(
        Code.INVALID_API_KEY, "missing API key: send x-api-key or Authorization: Bearer"
    )


def live_key(snapshot: Snapshot, key: Key | None, now_us: int) -> Key:
    """`key`, when it may be used. Raises Refusal as `pick_key`."""
    refusal = _why_not(snapshot, key, now_us)
    if refusal is not None or key is None:
        raise refusal or Refusal(Code.INVALID_API_KEY, "invalid x-api-key")
    return key


def _why_not(snapshot: Snapshot, key: Key | None, now_us: int) -> Refusal | None:
    if key is None:
        return Refusal(Code.INVALID_API_KEY, "invalid x-api-key")
    if key.status != "active":
        return Refusal(Code.INVALID_API_KEY, f"this API key was {key.status}")
    if _has_expired(key, now_us):
        return Refusal(Code.INVALID_API_KEY, EXPIRED)
    account = snapshot.accounts.get(key.account_id)
    if account is None or account.status == "disabled":
        return Refusal(Code.INVALID_API_KEY, "the account of this API key is disabled")
    if account.status == "paused":
        return Refusal(
            Code.PERMISSION_DENIED, "permission_denied: the account of this API key is paused"
        )
    return None


REVOKED: Final = "this API key was revoked"
EXPIRED: Final = "this API key has expired"


def why_ended(snapshot: Snapshot, key: Key, now_us: int) -> str:
    """Why a key that was live when its request began is none any more; empty while it is one."""
    now = snapshot.keys.get(key.secret_sha256)
    account = snapshot.accounts.get(key.account_id)
    if now is None or now.status != "active" or account is None or account.status == "disabled":
        return REVOKED
    return EXPIRED if _has_expired(now, now_us) else ""


def _has_expired(key: Key, now_us: int) -> bool:
    return key.expires_at is not None and key.expires_at <= now_us


class KeyRules(NamedTuple):
    """What a key is bound to beyond its money: from where it may be used, how often."""

    addresses: AddressRules | None
    rates: tuple[Rule, ...]


def rules_of(snapshot: Snapshot, key: Key, parent: Key | None) -> KeyRules:
    """The rules of `key`; `parent` is that of a sub-key, whose lists the key has already (see
    `services.core.subkeys.inherited`). Raises BadNetwork."""
    addresses = None
    if key.ip_allow or key.ip_deny:
        addresses = AddressRules(networks(key.ip_allow), networks(key.ip_deny))
    account = snapshot.accounts[key.account_id]
    member = snapshot.members.get(key.member_id or "")
    rates = [_rates(key, "key")]
    if parent is not None:
        rates.append(_rates(parent, "parent key"))
    if member is not None:
        rates.append(Rule(member.id, "member", member.concurrency))
    rates.append(_rates(account, "account"))
    return KeyRules(addresses, tuple(rule for rule in rates if any(rule[2:])))


def _rates(subject: Key | Account, whose: str) -> Rule:
    return Rule(
        subject.id, whose, subject.concurrency, subject.requests_per_min, subject.tokens_per_min
    )


def check_address(rules: KeyRules, client: str) -> None:
    """Raises Refusal(PERMISSION_DENIED), naming the rule, when the key may not be used from the
    address `client`."""
    if rules.addresses is None:
        return
    reason = rules.addresses.why_not(client)
    if reason:
        raise Refusal(Code.PERMISSION_DENIED, f"permission_denied: {reason}")


def check_model(
    snapshot: Snapshot, index: ModelIndex, key: Key, asked: str, *, media: bool = False
) -> ModelPrice:
    """The priced model that `asked` means for this key: a text model, or with `media` one that
    makes images, video, ... as a job.

    Raises Refusal: MODEL_NOT_FOUND for a name that nothing serves, MODEL_WITHOUT_PRICE for one
    that a channel serves and the price version does not hold, UNSUPPORTED_MODEL (text) or
    INVALID_PARAM (media) for one of the other sort, MODEL_NOT_IN_GROUP for one that only other
    groups may use or that is in no list of the key or its member."""
    shown = asked if len(asked) <= _NAME_MAX else asked[:_NAME_MAX] + "..."
    model = index.resolve(asked)
    if model is None:
        if any(asked in channel.models for channel in snapshot.channels):
            raise _without_price(shown)
        raise Refusal(
            Code.MODEL_NOT_FOUND, f"model_not_found: no model is named {shown!r}", param="model"
        )
    if media and model.kind == "text":
        raise InvalidRequest(f"model: {shown!r} is a text model, it makes no media", param="model")
    if not media and model.kind != "text":
        raise Refusal(
            Code.UNSUPPORTED_MODEL,
            f"unsupported_model: {shown!r} makes {model.kind}: use POST /v1/tasks/submit",
            param="model",
        )
    if not _has_prices(model):
        raise _without_price(shown)
    if in_group(snapshot, key.group, model.model):
        list_name = _list_without(snapshot, index, key, model.model)
        if not list_name:
            return model
        raise Refusal(
            Code.MODEL_NOT_IN_GROUP,
            f"model_not_in_group: {list_name} has no {shown!r}",
            param="model",
        )
    if any(model.model in channel.models for channel in snapshot.channels):
        raise Refusal(
            Code.MODEL_NOT_IN_GROUP,
            f"model_not_in_group: group {key.group!r} of this key has no {shown!r}",
            param="model",
        )
    raise Refusal(
        Code.MODEL_NOT_FOUND, f"model_not_found: no channel serves {shown!r}", param="model"
    )


def allowed_models(snapshot: Snapshot, index: ModelIndex, key: Key) -> list[ModelPrice]:
    """The models that `check_model` lets this key use, by id."""
    served = {
        name
        for channel in snapshot.channels
        if key.group in channel.groups
        for name in channel.models
    }
    found = [
        model
        for model in (snapshot.prices.book.models.get(name) for name in sorted(served))
        if model is not None
    ]
    return [
        model
        for model in found
        if _has_prices(model)
        and in_group(snapshot, key.group, model.model)
        and not _list_without(snapshot, index, key, model.model)
    ]


def _list_without(snapshot: Snapshot, index: ModelIndex, key: Key, canonical: str) -> str:
    """Which list forbids the model: the key's own (with its parent's) or its member's; empty when
    none does. A member may call only what it was granted."""
    if key.models and not _listed(index, key.models, canonical):
        return "the model list of this key"
    if key.member_id is not None:
        member = snapshot.members.get(key.member_id)
        granted = member.models if member is not None else ()
        if granted != EVERY_MODEL and not _listed(index, granted, canonical):
            return "the list of models that this member was granted"
    return ""


def _listed(index: ModelIndex, names: Sequence[str], canonical: str) -> bool:
    """Whether a list holds the model, under its own id or a form of it (dots for dashes)."""
    if canonical in names:
        return True
    found = (index.resolve(name) for name in names)
    return any(model is not None and model.model == canonical for model in found)


def in_group(snapshot: Snapshot, group_name: str, canonical: str) -> bool:
    """Whether a key of the group may use the model and a channel of the group serves it."""
    group = snapshot.groups.get(group_name)
    if group is None or (group.models and canonical not in group.models):
        return False
    return any(
        canonical in channel.models and group_name in channel.groups
        for channel in snapshot.channels
    )


def _has_prices(model: ModelPrice) -> bool:
    return model.kind != "text" or all(name in model.classes for name in _NEEDED)


def _without_price(shown: str) -> Refusal:
    return Refusal(
        Code.MODEL_WITHOUT_PRICE,
        f"model_without_price: {shown!r} has no price, so it cannot be billed",
        param="model",
    )
