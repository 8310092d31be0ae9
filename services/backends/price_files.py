"""Price data: one TOML file per vendor, `schemas/prices/<vendor>.toml`, read exactly.

A file names its `vendor`, defaults for its rows, and `[[models]]` with prices in USD per
1,000,000 units as decimal strings. A wrong value is one line that names file and path."""

import datetime
import tomllib
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

import schemas
from services.core.money import NANO_PER_USD
from services.core.prices import ModelPrice
from services.core.routing import normalized

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
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]


class PriceFileError(Exception):
    """One line for the operator: which file, which path in it, what is wrong."""


class _Row(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: _Name
    usd_per_million: dict[str, str]
    context_window: _Positive | None = None  # text needs it, as the next one
    max_output_tokens: _Positive | None = None
    provider_usd_per_million: dict[str, str] = {}
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
    models: list[_Row]
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
    """The models of a file, or of all `*.toml` of a folder (default: the built-in data), by id.

    Raises `PriceFileError`."""
    path = path or built_in_folder()
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not files:
        raise PriceFileError(f"{path}: no price file (*.toml) here")
    models: dict[str, ModelPrice] = {}
    taken: dict[str, str] = {}
    for file in files:
        for at, model in enumerate(_read(file)):
            where = f"{file}: models[{at}]"
            for name in (model.model, *model.aliases):
                owner = taken.setdefault(normalized(name), model.model)
                if owner != model.model or model.model in models:
                    raise PriceFileError(f"{where}: `{name}` already names {owner}")
            models[model.model] = model
    return models


def usd_per_million(price: str) -> int:
    """Nano-USD per 10^6 units of a decimal string in USD per 10^6 units. Raises ValueError."""
    try:
        nano = Decimal(price) * NANO_PER_USD
    except InvalidOperation as ex:
        raise ValueError(f"not a decimal number: {price!r}") from ex
    if not nano.is_finite() or nano != nano.to_integral_value():
        raise ValueError(f"finer than a nano-dollar, or no number: {price!r}")
    if not 0 <= nano <= _PRICE_MAX:
        raise ValueError(f"out of range: {price!r}")
    return int(nano)


def _read(file: Path) -> list[ModelPrice]:
    try:
        raw = tomllib.loads(file.read_text("utf-8"))
    except OSError as ex:
        raise PriceFileError(f"cannot read {file}: {ex.strerror}") from ex
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as ex:
        raise PriceFileError(f"{file}: not TOML: {ex}") from ex
    try:
        content = msgspec.convert(raw, _File)
    except msgspec.ValidationError as ex:
        what, _, path = str(ex).partition(" - at ")
        place = path.strip("`").removeprefix("$").removeprefix(".") or "the file"
        raise PriceFileError(f"{file}: {place}: {what}") from ex
    return [_model(file, at, content, row) for at, row in enumerate(content.models)]


def _model(file: Path, at: int, content: _File, row: _Row) -> ModelPrice:
    where = f"{file}: models[{at}]"
    classes = _classes(f"{where}.usd_per_million", row.usd_per_million)
    _require(where, row, classes)
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
        provider_classes=_classes(
            f"{where}.provider_usd_per_million", row.provider_usd_per_million
        ),
        aliases=row.aliases,
        display_name=row.display_name or row.model,
        created=_midnight(row.created),
        hidden_output=row.hidden_output,
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


def _classes(where: str, prices: dict[str, str]) -> dict[str, int]:
    classes: dict[str, int] = {}
    for name, price in prices.items():
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
