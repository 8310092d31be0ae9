"""Price data: one TOML file per vendor, `schemas/prices/<vendor>.toml`, read exactly.

A file names its `vendor`, defaults for its rows, and `[[models]]` with prices in USD per
1,000,000 units as decimal strings. `[models.tiers.NAME]` holds what differs in a service tier
(`flex`), above `long_context_tokens` (`long`) or in both (`"flex+long"`); `provider_...` what the
provider charges us. `[[channels]]` prices a model otherwise on one channel, in the same fields.
A wrong value is one line that names file and path."""

import datetime
import re
import tomllib
from collections.abc import Collection
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

import schemas
from services.core.money import NANO_PER_USD
from services.core.prices import ChannelPrice, ModelPrice, Overrides
from services.core.routing import normalized
from services.core.tiers import LONG, Rate, is_tier, rate_of

REQUIRED: Final = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
_PRICE_MAX: Final = 10**18  # nano-USD per 10^6 units: a thousand dollars for one unit
MEDIA: Final[dict[str, tuple[str, ...]]] = {  # one of these is the price of a generation
    "image": ("images",),
    "video": ("seconds", "calls"),
    "speech": ("characters",),
    "transcription": ("seconds",),
    "embedding": ("input",),
    "rerank": ("calls",),
}
_CLASS: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]


class PriceFileError(Exception):
    """One line for the operator: which file, which path in it, what is wrong."""


class _Prices(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: _Name
    usd_per_million: dict[str, str] = {}
    tiers: dict[str, dict[str, str]] = {}
    provider_usd_per_million: dict[str, str] = {}
    provider_tiers: dict[str, dict[str, str]] = {}


class _Channel(_Prices, kw_only=True, forbid_unknown_fields=True):
    channel: _Name


class _Row(_Prices, kw_only=True, forbid_unknown_fields=True):
    context_window: _Positive | None = None  # text needs it, as the next one
    max_output_tokens: _Positive | None = None
    long_context_tokens: _Positive | None = None
    display_name: str = ""
    created: datetime.date | None = None
    aliases: list[_Name] = []
    capabilities: list[str] | None = None
    input_modalities: list[str] | None = None
    output_modalities: list[str] | None = None
    bytes_per_token: _Positive | None = None
    image_tokens: _Positive | None = None
    document_tokens: _Positive | None = None
    hidden_output: bool = False
    kind: str = "text"
    limits: dict[str, _Positive] = {}
    choices: dict[str, list[str]] = {}


class _File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    vendor: _Name
    models: list[_Row] = []
    channels: list[_Channel] = []
    capabilities: list[str] = msgspec.field(default_factory=lambda: ["text"])
    input_modalities: list[str] = msgspec.field(default_factory=lambda: ["text"])
    output_modalities: list[str] = msgspec.field(default_factory=lambda: ["text"])
    bytes_per_token: _Positive = 4
    image_tokens: _Positive = 5_000
    document_tokens: _Positive = 300_000


def built_in_folder() -> Path:
    """The folder of the price data that comes with the product."""
    return Path(schemas.__path__[0]) / "prices"


def load(path: Path | None = None) -> dict[str, ModelPrice]:
    """The models of `read`, by id. Raises `PriceFileError`."""
    return read(path).models


def read(path: Path | None = None) -> Overrides:
    """What a file says, or all `*.toml` of a folder (default: the built-in data).

    Raises `PriceFileError`."""
    path = path or built_in_folder()
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not files:
        raise PriceFileError(f"{path}: no price file (*.toml) here")
    models: dict[str, ModelPrice] = {}
    channels: dict[str, dict[str, ChannelPrice]] = {}
    taken: dict[str, str] = {}
    for file in files:
        content = _content(file)
        for at, row in enumerate(content.models):
            model = _model(file, at, content, row)
            for name in (model.model, *model.aliases):
                owner = taken.setdefault(normalized(name), model.model)
                if owner != model.model or model.model in models:
                    raise PriceFileError(f"{file}: models[{at}]: `{name}` already names {owner}")
            models[model.model] = model
        for at, priced in enumerate(content.channels):
            where = f"{file}: channels[{at}]"
            by_model = channels.setdefault(priced.channel, {})
            if priced.model in by_model:
                raise PriceFileError(f"{where}: {priced.model} on {priced.channel} stands twice")
            by_model[priced.model] = _channel_price(where, priced)
    return Overrides(models=models, channels=channels)


def require_models(own: Overrides, known: Collection[str]) -> None:
    """Raises `PriceFileError` when a channel prices a model that is not among `known`."""
    for channel, by_model in own.channels.items():
        for model in by_model.keys() - own.models.keys() - set(known):
            raise PriceFileError(f"channels: {channel} prices {model!r}, which is no model here")


def usd_per_million(price: str) -> int:
    """Nano-USD per 10^6 units of a decimal string in USD per 10^6 units. Raises ValueError."""
    try:
        nano = Decimal(price) * NANO_PER_USD
    except ArithmeticError as ex:  # no number, or far too large a one
        raise ValueError(f"not a decimal number: {price!r}") from ex
    if not nano.is_finite() or nano != nano.to_integral_value():
        raise ValueError(f"finer than a nano-dollar, or no number: {price!r}")
    if not 0 <= nano <= _PRICE_MAX:
        raise ValueError(f"out of range: {price!r}")
    return int(nano)


def _content(file: Path) -> _File:
    try:
        raw = tomllib.loads(file.read_text("utf-8"))
    except OSError as ex:
        raise PriceFileError(f"cannot read {file}: {ex.strerror}") from ex
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as ex:
        raise PriceFileError(f"{file}: not TOML: {ex}") from ex
    try:
        return msgspec.convert(raw, _File)
    except msgspec.ValidationError as ex:
        what, _, path = str(ex).partition(" - at ")
        place = path.strip("`").removeprefix("$").removeprefix(".") or "the file"
        raise PriceFileError(f"{file}: {place}: {what}") from ex


def _model(file: Path, at: int, content: _File, row: _Row) -> ModelPrice:
    where = f"{file}: models[{at}]"
    classes = _price_set(where, "", row.usd_per_million, row.tiers)
    _require(where, row, classes)
    provider = _price_set(
        where, "provider_", row.provider_usd_per_million, row.provider_tiers, partial=True
    )
    _require_threshold(where, row.long_context_tokens, {**classes, **provider})
    defaults: dict[str, Any] = {
        name: getattr(row, name) if getattr(row, name) is not None else getattr(content, name)
        for name in (
            "capabilities",
            "input_modalities",
            "output_modalities",
            "bytes_per_token",
            "image_tokens",
            "document_tokens",
        )
    }
    return ModelPrice(
        model=row.model,
        vendor=content.vendor,
        context_window=row.context_window or 0,
        max_output_tokens=row.max_output_tokens or 0,
        classes=classes,
        provider_classes=provider,
        aliases=row.aliases,
        display_name=row.display_name or row.model,
        created=_midnight(row.created),
        hidden_output=row.hidden_output,
        long_context_tokens=row.long_context_tokens or 0,
        kind=row.kind,
        limits=row.limits,
        choices=row.choices,
        **defaults,
    )


def _require(where: str, row: _Row, classes: dict[str, int]) -> None:
    if row.kind == "text":
        missing = [name for name in REQUIRED if name not in classes]
        if row.context_window is None or row.max_output_tokens is None:
            raise PriceFileError(f"{where}: a text model has context_window and max_output_tokens")
    elif row.kind in MEDIA:
        some = any(name in classes for name in MEDIA[row.kind])
        missing = [] if some else list(MEDIA[row.kind][:1])
    else:
        raise PriceFileError(f"{where}.kind: text or one of {', '.join(MEDIA)}, not {row.kind!r}")
    for name in missing:
        raise PriceFileError(f"{where}.usd_per_million: `{name}` is missing ({row.model})")


def _require_threshold(where: str, tokens: int | None, prices: dict[str, int]) -> None:
    has_long = any(rate_of(key).long for key in prices)
    if has_long and tokens is None:
        raise PriceFileError(f"{where}.long_context_tokens: is missing for the prices of `{LONG}`")
    if tokens is not None and not has_long:
        raise PriceFileError(f"{where}.tiers.{LONG}: is missing for long_context_tokens")


def _channel_price(where: str, row: _Channel) -> ChannelPrice:
    sold = _price_set(where, "", row.usd_per_million, row.tiers, partial=True)
    costs = _price_set(
        where, "provider_", row.provider_usd_per_million, row.provider_tiers, partial=True
    )
    if not sold and not costs:
        raise PriceFileError(f"{where}: no price for {row.model} on {row.channel}")
    return ChannelPrice(classes=sold, provider_classes=costs)


def _price_set(
    where: str,
    word: str,
    plain: dict[str, str],
    tiers: dict[str, dict[str, str]],
    *,
    partial: bool = False,
) -> dict[str, int]:
    """The price set of one row. Unless it is `partial`, a tier prices only classes that have a
    plain price."""
    found = _classes(f"{where}.{word}usd_per_million", plain)
    for name, prices in tiers.items():
        at = f"{where}.{word}tiers.{name}"
        served = rate_of(f"{name}:any")
        if served.key != f"{name}:any" or (served.tier and not is_tier(served.tier)):
            raise PriceFileError(f"{at}: a tier is called like `flex`, `{LONG}` or `flex+{LONG}`")
        for usage_class, nano in _classes(at, prices).items():
            if usage_class not in found and not partial:
                raise PriceFileError(f"{at}.{usage_class}: there is no plain price of it")
            found[Rate(usage_class, served.tier, served.long).key] = nano
    return found


def _classes(where: str, prices: dict[str, str]) -> dict[str, int]:
    classes: dict[str, int] = {}
    for name, price in prices.items():
        if not _CLASS.fullmatch(name):
            raise PriceFileError(f"{where}.{name}: a class is called like `input`")
        try:
            classes[name] = usd_per_million(price)
        except ValueError as ex:
            raise PriceFileError(f"{where}.{name}: {ex}") from ex
    return classes


def _midnight(day: datetime.date | None) -> int:
    """Seconds since the epoch at the start of `day`, UTC; 0 when it is not known."""
    if day is None:
        return 0
    return int(datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp())
