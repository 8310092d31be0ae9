"""A price version: one immutable set of prices that events name and that re-rating reads back.

Prices are integer nano-USD per 1,000,000 units of a usage class (`input`, `cache_read`,
`cache_write_5m`, `cache_write_1h`, `output`, `web_search`, ...). A class that a model has no price
for cannot be billed: the model is refused (`model_without_price`), never free.
"""

import hashlib
from typing import Final

import msgspec

PPM: Final = 1_000_000


class ModelPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What one model is and costs. `classes` and `provider_classes` are price sets
    (`services.core.tiers`) in nano-USD per 10^6 units; `provider_classes` empty means that the
    provider charges us the list price `classes`."""

    model: str
    vendor: str  # anthropic | openai | google | deepseek | moonshot | zhipu | minimax
    context_window: int
    max_output_tokens: int
    classes: dict[str, int]
    provider_classes: dict[str, int] = {}
    aliases: list[str] = []
    capabilities: list[str] = []
    input_modalities: list[str] = msgspec.field(default_factory=lambda: ["text"])
    output_modalities: list[str] = msgspec.field(default_factory=lambda: ["text"])
    bytes_per_token: int = 4  # the count_tokens estimate
    image_tokens: int = 5_000  # the most that one image can cost as input
    document_tokens: int = 300_000  # the most that one document (PDF) can cost as input
    hidden_output: bool = False  # bills output that its stream does not show (reasoning)
    display_name: str = ""
    created: int = 0
    long_context_tokens: int = 0  # more input than this costs the `long:` prices; 0: never
    kind: str = "text"  # text, or what it generates: services.core.media.KINDS
    limits: dict[str, int] = {}  # media: seconds_max, n_max, ... (services.core.media)
    choices: dict[str, list[str]] = {}  # media: resolutions, sizes, ...; absent: anything


class PriceBook(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a price version. `channels[name][model]` overrides prices of the model on one
    channel, `channel_costs[name][model]` what its provider charges us there;
    `multipliers_ppm[group]` is the group's multiplier in parts per million."""

    models: dict[str, ModelPrice]
    multipliers_ppm: dict[str, int]
    channels: dict[str, dict[str, dict[str, int]]] = {}
    channel_costs: dict[str, dict[str, dict[str, int]]] = {}

    def version_id(self) -> str:
        """`pv_` and the first 16 hex digits of the SHA-256 of the sorted JSON."""
        body = msgspec.json.encode(self, order="deterministic")
        return "pv_" + hashlib.sha256(body).hexdigest()[:16]


class PriceVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A price book under its id, in force from `effective_at` (microseconds, UTC)."""

    id: str
    effective_at: int
    book: PriceBook
