"""Which jobs the chaos submits: a function of the seed and the job's number."""

import random
from typing import Final, NamedTuple

# fault -> weight. The provider does the work and answers in the end.
SOUND: Final = {
    "": 300,
    "create-cut": 6,
    "create-timeout-1": 3,
    "create-500-done": 6,
    "create-no-id": 4,
    "create-garbage": 4,
    "create-500-1": 2,
    "create-429-1": 1,
    "job-unknown-state-1": 6,
    "poll-500-1": 6,
    "poll-429-1": 6,
    "poll-404-1": 6,
    "poll-garbage-1": 6,
    "poll-cut-1": 6,
    "poll-slow-300": 6,
    "cancel-too-late": 6,
    "cancel-500-1": 6,
    "cancel-unsupported": 6,
    "artifact-redirect-1": 6,
    "artifact-no-length": 6,
}
# Nothing usable ever comes: free.
SPOILED: Final = {
    "create-400": 6,
    "create-422": 4,
    "create-moderated": 6,
    "job-fail": 10,
    "job-moderated": 6,
    "job-no-output": 6,
    "job-gone": 4,
    "artifact-404": 4,
    "artifact-410": 4,
    "artifact-short": 6,
    "artifact-wrong-type": 6,
    "artifact-empty": 6,
}
# Free once the time is over: the deadline of these jobs is short.
ENDLESS: Final = {"job-stuck": 5, "artifact-500": 4, "artifact-403": 4, "artifact-truncated": 4}
ENDLESS_S: Final = 6
# The provider of the first finds a job by our reference; those of the others cannot tell whether
# a create arrived, and answer a create with the result.
MODELS: Final = {"veo-3.1": 60, "sim-video": 10, "sim-image": 25, "sim-speech": 5}
FINDABLE: Final = frozenset({"veo-3.1"})
# A create of theirs whose answer is lost has been made for nothing.
LOST_CREATES: Final = ("create-cut", "create-timeout", "create-500", "create-no-id", "create-garb")
CANCELLED: Final = 0.05
_FAULTS: Final = {**SOUND, **SPOILED, **ENDLESS}


class Ask(NamedTuple):
    number: int
    model: str
    fault: str
    cancel_after_s: float | None

    @property
    def tag(self) -> str:
        """The prompt's first word: the name of this job at the provider."""
        return f"fox{self.number}"

    @property
    def is_spoiled(self) -> bool:
        return self.fault in SPOILED or self.fault in ENDLESS

    def body(self) -> dict:
        prompt = f"{self.tag} sim:fault {self.fault}" if self.fault else self.tag
        given: dict = {"prompt": prompt}
        if self.model == "sim-speech":
            given = {"input": prompt, "format": "wav"}
        elif self.model == "sim-image":
            given |= {"size": "64x64"}
        else:
            given |= {"duration_seconds": 1}
        body = {"model": self.model, "input": given, "external_id": self.tag}
        return body | ({"deadline_seconds": ENDLESS_S} if self.fault in ENDLESS else {})


def ask(seed: int, number: int) -> Ask:
    rng = random.Random(f"{seed}:job:{number}")
    model = rng.choices(list(MODELS), list(MODELS.values()))[0]
    fault = rng.choices(list(_FAULTS), list(_FAULTS.values()))[0]
    if model not in FINDABLE and fault.startswith(("cancel", "artifact-", "job-gone", "job-stuck")):
        fault = ""  # of a provider that answers at once, or has another way with files
    cancels = fault.startswith("cancel-") or rng.random() < CANCELLED
    return Ask(number, model, fault, rng.random() * 0.4 if cancels else None)
