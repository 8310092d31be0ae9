"""Moments as text."""

from datetime import UTC, datetime


def rfc3339(time_us: int, decimals: int = 0) -> str:
    """RFC 3339 in UTC with so many decimals of a second (0 to 6), cut off, not rounded."""
    whole_s, rest_us = divmod(time_us, 1_000_000)
    text = datetime.fromtimestamp(whole_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest_us:06d}"[: len(text) + 1 + decimals] + "Z" if decimals else text + "Z"
