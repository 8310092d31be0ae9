"""How much money a request can cost at most, before it is sent upstream.

The input bound is tokens times the dearest input class the body can trigger, the output bound is
the request's cap (else the model's maximum) times `n`; both in the dearest service tier and input
length that the body can trigger, at the dearest channel the request may fail over to, rounded up.
A usage within the token bounds is never rated above them."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from services.core.dialects.base import BodyShape, ParsedRequest
from services.core.prices import ModelPrice, PriceBook
from services.core.rating import Unpriced, ceiling_nano, class_prices
from services.core.tiers import price_of

# A token is at least two bytes of JSON text in every tokenizer that we price.
BYTES_PER_TOKEN_MIN: Final = 2
# What one request may do with the vendor's own tools (web search): calls, and tokens per result.
# Beyond these the overrun rule applies, as for every usage above its hold.
SERVER_TOOL_CALLS: Final = 10
SERVER_TOOL_TOKENS: Final = 10_000
# What an elastic hold starts with, and grows by: about 4 KB of output.
SLICE_TOKENS: Final = 2_048

_INPUT_CLASSES: Final = ("input", "cache_read", "cache_write_5m")


class Bound(NamedTuple):
    """Nano-USD. An elastic hold starts with `input_nano` and a slice of `output_nano`, which is
    the price of `output_tokens`."""

    input_nano: int
    output_nano: int
    output_tokens: int

    @property
    def whole_nano(self) -> int:
        return self.input_nano + self.output_nano

    def tokens_nano(self, tokens: int) -> int:
        """What `tokens` of output cost at most."""
        if not self.output_tokens:
            return 0
        return -(-tokens * self.output_nano // self.output_tokens)

    def tokens_within(self, nano: int) -> int:
        """The tokens of output that surely cost no more than `nano`; 0 for less than nothing."""
        if nano <= 0 or not self.output_nano:
            return 0
        return nano * self.output_tokens // self.output_nano


def input_tokens_max(model: ModelPrice, shape: BodyShape) -> int:
    """The most input tokens that a body of `shape` can be, over all input classes together."""
    if shape.stored_input:
        return model.context_window  # nobody here knows how much it is
    tokens = -(-shape.text_bytes // BYTES_PER_TOKEN_MIN)
    tokens += shape.images * model.image_tokens + shape.documents * model.document_tokens
    if shape.server_tools:
        tokens += SERVER_TOOL_CALLS * SERVER_TOOL_TOKENS
    return min(model.context_window, tokens)


def output_tokens_max(model: ModelPrice, max_output_tokens: int | None, n: int) -> int:
    """The request's cap, else the model's maximum, for each of `n` answers."""
    cap = model.max_output_tokens
    if max_output_tokens is not None:
        cap = max(0, max_output_tokens)
    return cap * max(1, n)


def shows_its_output(model: ModelPrice, parsed: ParsedRequest) -> bool:
    """Whether all that the answer costs can be seen while it is made, so that its hold may grow
    with it."""
    return (
        parsed.stream
        and parsed.n == 1
        and not parsed.shape.server_tools
        and not model.hidden_output
    )


def used_nano(
    bound: Bound, *, output_bytes: int, told_output: int = 0, told_input_nano: int | None = None
) -> int:
    """What a running answer can have cost so far: the input as told, else its bound, and the
    output as told or, at two bytes for a token, as seen; whichever is more."""
    seen = min(-(-output_bytes // BYTES_PER_TOKEN_MIN), bound.output_tokens)
    input_nano = bound.input_nano if told_input_nano is None else told_input_nano
    return input_nano + bound.tokens_nano(max(seen, told_output))


def bytes_within(bound: Bound, nano: int) -> int:
    """How many bytes may still pass before `used_nano` can have grown by more than `nano`."""
    return bound.tokens_within(nano) * BYTES_PER_TOKEN_MIN


def hold_bound(
    book: PriceBook,
    *,
    channels: Iterable[str],
    priced_as: str,
    multiplier_ppm: int,
    shape: BodyShape,
    max_output_tokens: int | None,
    n: int = 1,
    tier: str = "",
) -> Bound:
    """The bound of a request that may go to any of `channels` (names) and asks for `tier`, which
    the provider may grant or not.

    Raises `Unpriced` when there is no channel, or a class that the body can trigger has no
    price on one of them."""
    model = book.models.get(priced_as)
    if model is None:
        raise Unpriced(f"no price for model {priced_as}")
    input_units = input_tokens_max(model, shape)
    output_units = output_tokens_max(model, max_output_tokens, n)
    classes = (*_INPUT_CLASSES, "cache_write_1h") if shape.cache_write_1h else _INPUT_CLASSES
    long = 0 < model.long_context_tokens < input_units
    dearest: Bound | None = None
    for channel in channels:
        prices = class_prices(book, channel, priced_as)
        input_price = max(_price(prices, name, tier, long) for name in classes)
        input_nano = ceiling_nano(input_units, input_price, multiplier_ppm)
        if shape.server_tools and "web_search" in prices:
            # A model without a price for searches cannot bill one: the rating refuses it.
            search = _price(prices, "web_search", tier, long)
            input_nano += ceiling_nano(SERVER_TOOL_CALLS, search, multiplier_ppm)
        output_price = _price(prices, "output", tier, long)
        output_nano = ceiling_nano(output_units, output_price, multiplier_ppm)
        if dearest is None:
            dearest = Bound(input_nano, output_nano, output_units)
        else:
            dearest = Bound(
                max(dearest.input_nano, input_nano),
                max(dearest.output_nano, output_nano),
                output_units,
            )
    if dearest is None:
        raise Unpriced(f"no channel for model {priced_as}")
    return dearest


def _price(prices: dict[str, int], name: str, tier: str, long: bool) -> int:
    """The dearest price that the class can have: in the tier asked for, or in the standard one."""
    price = price_of(prices, name, "", long)
    if price is None:
        raise Unpriced(f"no price for {name}")
    return max(price, price_of(prices, name, tier, long) or 0) if tier else price
