"""Faults by model name: `sim-NAME` or `sim-NAME-NUMBER`, the same in every dialect.

They can also be chosen by the header `x-sim-fault: NAME` or by a base URL that ends in
`/fault/sim-NAME`, for calls whose model must stay a priced one.
"""

import re
from typing import Final, NamedTuple

# name -> the number when none is given; what the number means stands behind it
DEFAULTS: Final = {
    "error": 500,  # status
    "429": 1,  # seconds in retry-after
    "529": 0,
    "too-long": 0,  # 400: prompt is too long
    "200-error-body": 0,
    "cut-mid-stream": 3,  # deltas before the connection is cut
    "error-mid-stream": 3,  # deltas before the error event
    "cut-after-finish": 0,  # finish reason, but no usage behind it and no end marker
    "slow": 300,  # ms between events
    "stall": 30,  # seconds of silence after three deltas
    "stall-first": 86_400,  # seconds before the first byte
    "hang-head": 86_400,  # seconds of silence in the middle of the head
    "close-connect": 0,  # closed without a byte
    "empty": 0,
    "no-usage": 0,
    "truncated-json": 0,
    "bad-json": 0,
    "huge-usage": 3,  # times the output asked for
    "overcharge": 3,  # times the output asked for, on every tenth answer
    "ping": 50,  # ms of silence and a ping after each event
    "flaky": 2,  # failing calls of a session before it works
    "redirect": 0,
    "gzip": 0,  # the answer is compressed whatever the client accepts
}
_FORM: Final = re.compile(
    r"sim-(" + "|".join(sorted(map(re.escape, DEFAULTS), key=len, reverse=True)) + r")(?:-(\d+))?"
)
MESSAGES: Final = {
    400: "Invalid request: simulated.",
    401: "invalid x-api-key",
    402: "Your credit balance is too low.",
    403: "Your API key does not have permission to use the specified resource.",
    404: "model: not found",
    429: "Rate limit reached. Please try again in 1s.",
    500: "Internal server error",
    502: "Bad gateway",
    503: "Service unavailable",
    529: "Overloaded",
}


class Fault(NamedTuple):
    name: str
    number: int


def find(model: str, header: str, path: str) -> Fault | None:
    """The fault that the path, the header or the model asks for, in this order."""
    from_path = path.partition("/fault/")[2].partition("/")[0]
    for text in (from_path, header, model):
        match = _FORM.fullmatch(text if text.startswith("sim-") else "sim-" + text)
        if match and (text is not model or model.startswith("sim-")):
            name, number = match.groups()
            return Fault(name, int(number) if number else DEFAULTS[name])
    return None
