"""Money: integer nano-USD everywhere inside; text only at the edges of the product."""

from decimal import ROUND_FLOOR, Decimal, InvalidOperation
from typing import Final

NANO_PER_USD: Final = 1_000_000_000
NANO_PER_CREDIT: Final = 1_000  # 1 credit = 1 micro-USD
_MOST_USD: Final = Decimal(9_000_000_000)


def parse_usd(text: str) -> int:
    """Nano-USD of a decimal string such as `10`, `0.05`, `$1.25`.

    Raises ValueError when it is no finite decimal number or finer than a nano-dollar."""
    try:
        value = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation as ex:
        raise ValueError(f"not an amount in USD: {text!r}") from ex
    return nano_of(value)


def nano_of(usd: Decimal) -> int:
    """Nano-USD of a decimal number.

    Raises ValueError when it is not finite, finer than a nano-dollar or beyond 9 billion USD."""
    if not usd.is_finite() or abs(usd) > _MOST_USD:
        raise ValueError(f"not an amount in USD: {str(usd)[:40]!r}")
    nano = usd * NANO_PER_USD
    if nano != nano.to_integral_value():
        raise ValueError(f"not an amount in USD, it is finer than a nano-dollar: {str(usd)[:40]!r}")
    return int(nano)


def exact_usd(nano: int) -> str:
    """The exact decimal string, without trailing zeros: 1_500_000 -> `0.0015`."""
    text = f"{Decimal(nano) / NANO_PER_USD:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def cents_down(nano: int) -> str:
    """Two decimals, rounded toward minus infinity: what is left is never overstated."""
    return str((Decimal(nano) / NANO_PER_USD).quantize(Decimal("0.01"), ROUND_FLOOR))


def credits_up(nano: int) -> int:
    """Whole credits (micro-USD), rounded up: an estimate is never understated."""
    return -(-nano // NANO_PER_CREDIT)
