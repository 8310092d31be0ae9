"""Which faults and durations a media call asks for.

By model name `sim-NAME[-N][+NAME[-N]...]`, by the header `x-sim-fault: NAME[-N],...`, by a base
URL with `/fault/sim-NAME[-N][+...]`, or in the prompt: `sim:fault NAME[-N]`, `sim:queue-ms N`,
`sim:run-ms N`, so that the model may stay a priced one. All that are named hold together.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

ALWAYS: Final = 0
# name -> the number when none is given: how often, unless said otherwise; 0 is always
DEFAULTS: Final = {
    # the work is done, the reply is lost or useless
    "create-timeout": 86_400,  # seconds of silence
    "create-cut": ALWAYS,
    "create-500-done": ALWAYS,
    "create-no-id": ALWAYS,
    "create-garbage": ALWAYS,
    # no work; the numbered ones for the first creates of a prompt only
    "create-500": 1,
    "create-503": 1,
    "create-429": 1,
    "create-400": ALWAYS,
    "create-401": ALWAYS,
    "create-402": ALWAYS,
    "create-403": ALWAYS,
    "create-404": ALWAYS,
    "create-422": ALWAYS,
    "create-moderated": ALWAYS,
    "job-fail": ALWAYS,
    "job-moderated": ALWAYS,
    "job-stuck": ALWAYS,
    "job-no-output": ALWAYS,
    "job-partial": 1,  # outputs fewer than asked
    "job-unknown-state": 2,
    "job-gone": ALWAYS,
    "poll-500": 2,
    "poll-429": 2,
    "poll-404": 2,
    "poll-401": 2,
    "poll-garbage": 2,
    "poll-cut": 2,
    "poll-slow": 2000,  # ms
    "late-success": 5,  # seconds more; a cancel is accepted in vain
    "cancel-too-late": ALWAYS,
    "cancel-500": 2,
    "cancel-unsupported": ALWAYS,
    "artifact-404": ALWAYS,
    "artifact-410": ALWAYS,
    "artifact-403": ALWAYS,
    "artifact-500": ALWAYS,
    "artifact-truncated": ALWAYS,  # the length says more than comes
    "artifact-short": ALWAYS,  # half the file, in proper HTTP
    "artifact-wrong-type": ALWAYS,
    "artifact-empty": ALWAYS,
    "artifact-slow": 200,  # ms between pieces of 1 KiB
    "artifact-redirect": 1,
    "artifact-private": ALWAYS,
    "artifact-huge": ALWAYS,
    "artifact-no-length": ALWAYS,
}
_NAMES: Final = "|".join(sorted(map(re.escape, DEFAULTS), key=len, reverse=True))
_FAULT: Final = re.compile(rf"(?:sim-)?({_NAMES})(?:-(\d{{1,9}}))?")
_DIRECTIVE: Final = re.compile(rf"sim:fault\s+({_NAMES})(?:-(\d{{1,9}}))?(?![\w-])")
_DURATION: Final = re.compile(r"sim:(queue|run)-ms\s+(\d{1,9})")
_NONE: Final[Mapping[str, int]] = {}


class Knobs(NamedTuple):
    """`faults` by name with their number; None for a duration that is not told, in ms."""

    faults: Mapping[str, int] = _NONE
    queue_ms: int | None = None
    run_ms: int | None = None


_PLAIN: Final = Knobs()


def read(model: str, header: str, path_fault: str, prompt: str) -> Knobs:
    """What the four places ask for, a later one overrules an earlier one of the same name."""
    faults: dict[str, int] = {}
    named = [*path_fault.split("+"), *header.split(",")]
    if model.startswith("sim-"):
        named += model.split("+")
    for text in named:
        if match := _FAULT.fullmatch(text.strip()):
            _put(faults, match)
    if "sim:" not in prompt:
        return Knobs(faults) if faults else _PLAIN
    for match in _DIRECTIVE.finditer(prompt):
        _put(faults, match)
    told = {kind: int(number) for kind, number in _DURATION.findall(prompt)}
    return Knobs(faults or _NONE, told.get("queue"), told.get("run"))


def _put(faults: dict[str, int], match: re.Match[str]) -> None:
    name, number = match.groups()
    faults[name] = int(number) if number else DEFAULTS[name]
