"""What edge and batch service tell each other in headers, beside what clients see."""

from typing import Final

ORIGIN_HEADER: Final = "x-tollgate-origin"  # where the client reached the edge
HOLD_HEADER: Final = "x-tollgate-hold-nano"  # of the job that was submitted
FORMAT_HEADER: Final = "x-tollgate-response-format"  # that a form asked for
FLAT_HEADER: Final = "x-tollgate-flat"  # its client wrote the parameters beside the model
TAKE_HEADER: Final = "x-tollgate-take"  # what `take_text` writes and `read_take` reads

# Large bytes that do not lie on the batch service's disk: the answer names them in a header, and
# the edge asks for one piece after the other, as fast as its client takes them.
PIECE: Final = 4 * 1024 * 1024
STORED_HEADER: Final = "x-tollgate-stored"  # <sha256>:<first byte>:<how many>
STORED_PATH: Final = "/internal/stored"  # /<sha256>?first=&size=


def take_text(job_id: str, *, again: bool) -> str:
    """The id of the job to be made, and whether it is asked for once more, as no answer came."""
    return f"{job_id} again" if again else job_id


def read_take(text: str) -> tuple[str, bool]:
    """What `take_text` wrote; no id in an empty text."""
    job_id, _, again = text.partition(" ")
    return job_id, bool(again)
