"""The bodies of the management API, by the names of the wire.

Money is USD, as a number or a decimal string; 0 is "no limit", in limits and rates alike. In a
change (`PUT`) a field that is not sent stays as it is. Sums (`amount`) are above 0: whether money
comes or goes is said by the route."""

from decimal import Decimal
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

KEYS_IN_LIST_MAX: Final = 200  # `page_size`

# Without control characters: a name is one line everywhere, and no database takes a NUL.
_LINE: Final = r"^[^\x00-\x1f\x7f]*\Z"
Label: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=_LINE)]
Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=_LINE)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=1000, pattern=_LINE)]
ExternalId: TypeAlias = Annotated[str, msgspec.Meta(max_length=128, pattern=_LINE)]
Rate: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Days: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=36_500)]
Addresses: TypeAlias = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=256)
]
Models: TypeAlias = Annotated[list[Label], msgspec.Meta(max_length=1000)]
Caps: TypeAlias = dict[Label, Decimal]
Role: TypeAlias = Literal["owner", "admin", "member"]


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class KeyFields(Body, kw_only=True):
    """What a key has and may be changed. `group_id` is another name of `group`."""

    name: Label | UnsetType = UNSET
    group: Label | UnsetType = UNSET
    group_id: Label | UnsetType = UNSET
    quota: Decimal | UnsetType | None = UNSET  # USD in its life
    rate_limit_5h: Decimal | UnsetType | None = UNSET  # USD in a rolling window, as the next two
    rate_limit_1d: Decimal | UnsetType | None = UNSET
    rate_limit_7d: Decimal | UnsetType | None = UNSET
    ip_whitelist: Addresses | UnsetType = UNSET
    ip_blacklist: Addresses | UnsetType = UNSET
    models: Models | UnsetType = UNSET
    concurrency: Rate | UnsetType = UNSET
    requests_per_min: Rate | UnsetType = UNSET
    tokens_per_min: Rate | UnsetType = UNSET
    expires_in_days: Days | UnsetType | None = UNSET  # from now; null: never
    status: Literal["active", "disabled"] | UnsetType = UNSET


class CreateKey(KeyFields, kw_only=True):
    """`POST /api/v1/keys`. `account_id` is the operator's to say."""

    name: Label
    account_id: Id | None = None
    parent_id: Id | None = None
    member_id: Id | None = None
    custom_key: str | None = None


class UpdateKey(KeyFields, kw_only=True):
    """`PUT /api/v1/keys/{id}`."""


class MemberFields(Body, kw_only=True):
    """`models`: `["*"]` is every model, an empty list none. `quota` is the allotment; `model_caps`
    USD by model, 0 takes a cap away."""

    name: Label | UnsetType = UNSET
    email: Annotated[str, msgspec.Meta(max_length=254, pattern=_LINE)] | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    models: Models | UnsetType = UNSET
    quota: Decimal | UnsetType | None = UNSET
    model_caps: Caps | UnsetType = UNSET
    concurrency: Rate | UnsetType = UNSET


class CreateMember(MemberFields, kw_only=True):
    """`POST /api/v1/orgs/{id}/members`."""

    name: Label


class UpdateMember(MemberFields, kw_only=True):
    """`PUT /api/v1/orgs/{id}/members/{member_id}`."""

    status: Literal["active", "disabled"] | UnsetType = UNSET


class AllowedModels(Body, kw_only=True):
    """`PUT /api/v1/orgs/{id}/members/allowed-models`: the same models for many members; without
    `member_ids` for all of the org."""

    models: Models
    member_ids: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=1000)] | None = None


class CreateAccount(Body, kw_only=True):
    """`POST /api/v1/accounts`."""

    name: Label
    kind: Literal["individual", "org"] = "individual"
    concurrency: Rate = 0
    requests_per_min: Rate = 0
    tokens_per_min: Rate = 0


class UpdateAccount(Body, kw_only=True):
    """`PUT /api/v1/accounts/{id}`."""

    status: Literal["active", "paused", "disabled"] | UnsetType = UNSET
    concurrency: Rate | UnsetType = UNSET
    requests_per_min: Rate | UnsetType = UNSET
    tokens_per_min: Rate | UnsetType = UNSET


class TopUp(Body, kw_only=True):
    """`POST /api/v1/accounts/{id}/topup`. `bonus`: by the ladder, as a line of its own."""

    amount: Decimal
    bonus: bool = False
    external_id: ExternalId = ""
    note: Text = ""


class Adjustment(Body, kw_only=True):
    """`POST /api/v1/accounts/{id}/credit` and `/debit`."""

    amount: Decimal
    note: Annotated[Text, msgspec.Meta(min_length=1)]
    external_id: ExternalId = ""
