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
    (`services.core.tiers`) in nano-USD per 10^6 units; what `provider_classes` does not name the
    provider charges us as in `classes`."""

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


class ChannelPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What one channel prices otherwise for one model: what its customers owe, and what its
    provider charges us. Two price sets, each price in them replaces exactly that one."""

    classes: dict[str, int] = {}
    provider_classes: dict[str, int] = {}


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """Prices of the operator's own, which rule over the built-in ones: models by id, and channel
    prices by channel and model."""

    models: dict[str, ModelPrice] = {}
    channels: dict[str, dict[str, ChannelPrice]] = {}


class PriceBook(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a price version. `channels[name][model]` overrides prices of the model on one
    channel, `channel_costs[name][model]` what its provider charges us there;
    `multipliers_ppm[group]` is the group's multiplier in parts per million."""

    models: dict[str, ModelPrice]
    multipliers_ppm: dict[str, int]
    channels: dict[str, dict[str, dict[str, int]]] = {}
    channel_costs: dict[str, dict[str, dict[str, int]]] = {}

    def with_own(self, own: Overrides) -> "PriceBook":
        """This book with the operator's own prices over it: they replace a model, or all that a
        channel prices otherwise for a model."""
        sold = {name: dict(by_model) for name, by_model in self.channels.items()}
        costs = {name: dict(by_model) for name, by_model in self.channel_costs.items()}
        for channel, by_model in own.channels.items():
            for model, price in by_model.items():
                _put(sold, channel, model, price.classes)
                _put(costs, channel, model, price.provider_classes)
        return msgspec.structs.replace(
            self, models={**self.models, **own.models}, channels=sold, channel_costs=costs
        )

    def version_id(self) -> str:
        """`pv_` and the first 16 hex digits of the SHA-256 of the sorted JSON."""
        body = msgspec.json.encode(self, order="deterministic")
        return "pv_" + hashlib.sha256(body).hexdigest()[:16]


class PriceVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A price book under its id, in force from `effective_at` (microseconds, UTC)."""

    id: str
    effective_at: int
    book: PriceBook


def _put(
    table: dict[str, dict[str, dict[str, int]]], channel: str, model: str, prices: dict[str, int]
) -> None:
    if prices:
        table.setdefault(channel, {})[model] = prices
    elif channel in table:
        table[channel].pop(model, None)
