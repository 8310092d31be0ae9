"""What the answers of a batch used, as OpenAI's batch object tells it."""

from typing import Any, Final

import msgspec

_MAX: Final = 1 << 53


class _Part(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    """Of any of the endpoints: chat and embeddings write prompt and completion, responses write
    input and output."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Part | None = None
    completion_tokens_details: _Part | None = None
    input_tokens_details: _Part | None = None
    output_tokens_details: _Part | None = None


class _Answer(msgspec.Struct):
    model: str | None = None
    usage: _Usage | None = None


class Tally:
    """Sums over the answers that are `add`ed."""

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._input = self._output = self._cached = self._reasoning = 0

    def add(self, body: bytes) -> None:
        """One answer; what tells no usage in a shape that is known adds nothing."""
        try:
            told = msgspec.json.decode(body, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if told.model:
            self._models.add(told.model)
        if told.usage is None:
            return
        usage, nothing = told.usage, _Part()
        taken = usage.prompt_tokens_details or usage.input_tokens_details or nothing
        given = usage.completion_tokens_details or usage.output_tokens_details or nothing
        self._input += _count(usage.prompt_tokens or usage.input_tokens)
        self._output += _count(usage.completion_tokens or usage.output_tokens)
        self._cached += _count(taken.cached_tokens)
        self._reasoning += _count(given.reasoning_tokens)

    @property
    def model(self) -> str:
        """The one that all answers name; empty when there is none."""
        return next(iter(self._models)) if len(self._models) == 1 else ""

    def usage(self) -> dict[str, Any]:
        """OpenAI's object."""
        return {
            "input_tokens": self._input,
            "input_tokens_details": {"cached_tokens": self._cached},
            "output_tokens": self._output,
            "output_tokens_details": {"reasoning_tokens": self._reasoning},
            "total_tokens": self._input + self._output,
        }


def _count(told: int | None) -> int:
    return max(0, min(told or 0, _MAX))
