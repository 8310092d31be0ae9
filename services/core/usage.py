"""Usage in our own classes, read from what a vendor reports. Units are tokens or calls.

`input` is what was neither read from nor written to a cache; the four input classes are disjoint.
`output` holds everything the model made, `reasoning` says how much of it was thinking. A class
with zero units is left out; negative and non-integer counts are taken as zero."""

from collections.abc import Mapping
from typing import Any, Final

BILLED: Final = (
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "output",
    "web_search",
)
INPUT: Final = BILLED[:4]
INFO: Final = ("reasoning",)  # told, never priced: already inside `output`

MAX_UNITS: Final = 1_000_000_000_000  # the bound of schemas.events.Units

# Of Anthropic's `iterations`: what the vendor charges beside the totals.
_BESIDE: Final = frozenset({"compaction", "advisor_message"})


def from_anthropic(usage: dict[str, Any]) -> dict[str, int]:
    """Classes of an Anthropic `usage` object, with the iterations that its totals leave out: the
    summary that the vendor makes of a long context, the answers of an advisor."""
    found = _anthropic(usage)
    iterations = usage.get("iterations")
    for each in iterations if type(iterations) is list else ():
        if type(each) is dict and each.get("type") in _BESIDE:
            for name, units in _anthropic(each).items():
                found[name] = min(found.get(name, 0) + units, MAX_UNITS)
    return found


def _anthropic(usage: dict[str, Any]) -> dict[str, int]:
    """The split of the cache writes by lifetime is within their total: what it leaves unexplained
    counts as 5 minutes, what it has too much is cut."""
    split = _object(usage, "cache_creation")
    five = _count(split, "ephemeral_5m_input_tokens")
    hour = _count(split, "ephemeral_1h_input_tokens")
    written = _count(usage, "cache_creation_input_tokens") or five + hour
    hour = min(hour, written)
    return _classes(
        input=_count(usage, "input_tokens"),
        cache_read=_count(usage, "cache_read_input_tokens"),
        cache_write_5m=written - hour,
        cache_write_1h=hour,
        output=_count(usage, "output_tokens"),
        reasoning=_count(_object(usage, "output_tokens_details"), "thinking_tokens"),
        web_search=_count(_object(usage, "server_tool_use"), "web_search_requests"),
    )


def from_chat(usage: dict[str, Any]) -> dict[str, int]:
    """Classes of a Chat Completions `usage` object."""
    return _openai(
        usage, "prompt_tokens", "prompt_tokens_details", "completion_tokens", "completion"
    )


def from_responses(usage: dict[str, Any]) -> dict[str, int]:
    """Classes of a Responses `usage` object."""
    return _openai(usage, "input_tokens", "input_tokens_details", "output_tokens", "output")


def to_chat(usage: Mapping[str, int]) -> dict[str, Any]:
    """A Chat Completions `usage` object of classes."""
    return _to_openai(usage, "prompt_tokens", "completion_tokens")


def to_responses(usage: Mapping[str, int]) -> dict[str, Any]:
    """A Responses `usage` object of classes."""
    told = _to_openai(usage, "input_tokens", "output_tokens")
    return told | {"output_tokens_details": {"reasoning_tokens": usage.get("reasoning", 0)}}


def _to_openai(usage: Mapping[str, int], prompt_name: str, output_name: str) -> dict[str, Any]:
    prompt = sum(usage.get(name, 0) for name in INPUT)
    output = usage.get("output", 0)
    return {
        prompt_name: prompt,
        f"{prompt_name}_details": {"cached_tokens": usage.get("cache_read", 0)},
        output_name: output,
        "total_tokens": prompt + output,
    }


def _openai(
    usage: dict[str, Any], prompt_name: str, details_name: str, output_name: str, output_word: str
) -> dict[str, int]:
    details = _object(usage, details_name)
    prompt = _count(usage, prompt_name)
    # DeepSeek and Moonshot tell the cached part beside the details.
    cached = (
        _count(details, "cached_tokens")
        or _count(usage, "prompt_cache_hit_tokens")
        or _count(usage, "cached_tokens")
    )
    written = _count(details, "cache_write_tokens")
    if cached <= prompt:
        written = min(written, prompt - cached)
        prompt -= cached + written
    # Otherwise this vendor counts the cached part outside the prompt.

    # OpenAI's two lifetimes (30 minutes, 12 hours) are our short and long cache write.
    long = _count(_object(details, "cache_write_tokens_details"), "ttl_12h_tokens")
    long = min(long, written)
    return _classes(
        input=prompt,
        cache_read=cached,
        cache_write_5m=written - long,
        cache_write_1h=long,
        output=_count(usage, output_name),
        reasoning=_count(_object(usage, f"{output_word}_tokens_details"), "reasoning_tokens"),
    )


def _classes(**units: int) -> dict[str, int]:
    return {name: count for name, count in units.items() if count}


def _count(source: dict[str, Any], name: str) -> int:
    value = source.get(name)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:  # a bool is no count either
        return 0
    return min(max(value, 0), MAX_UNITS)


def _object(source: dict[str, Any], name: str) -> dict[str, Any]:
    value = source.get(name)
    return value if type(value) is dict else {}
