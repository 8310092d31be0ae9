"""Who pays for which ending: the cases that `tests/faults/test_failure_free.py` proves end to end,
in every dialect, and that the table of `docs/billing.md` is made of.

    python -m tests.parts.failure_matrix        writes the table into the page"""

from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parent.parent.parent / "docs" / "billing.md"
BEGIN, END = "<!-- table: tests/parts/failure_matrix.py -->", "<!-- end of table -->"

BILLED = {
    "completed": "**whole**",
    "client_aborted": "**part sent**",
    "budget_cut": "**part sent**",
}


class Case(NamedTuple):
    """`stream` and `whole` are the outcome and the error code of the request's row (empty when
    billed), None where the case does not exist. `fault` is the simulated provider's; `point` a
    crash point at which the worker is killed."""

    name: str
    stage: str
    what: str
    stream: tuple[str, str] | None
    whole: tuple[str, str] | None
    fault: str = ""
    point: str = ""


def failed(code: str) -> tuple[str, str]:
    return "failed", code


def both(ending: tuple[str, str]) -> dict[str, tuple[str, str]]:
    return {"stream": ending, "whole": ending}


DONE = ("completed", "")
ABANDONED = ("abandoned", "abandoned")
GONE = ("client_gone", "client_gone")

CASES = (
    Case("answer", "none", "the answer arrives", **both(DONE)),
    Case("failover", "upstream", "one channel fails, another answers", **both(DONE)),
    Case(
        "poor",
        "admission",
        "the hold does not fit a limit",
        **both(("refused", "insufficient_balance")),
    ),
    Case("unpriced", "admission", "the model is not known", **both(("refused", "model_not_found"))),
    Case("closed", "upstream", "nothing listens there", **both(failed("upstream_error"))),
    Case(
        "close-connect",
        "upstream",
        "it closes the connection without a byte",
        **both(failed("upstream_error")),
        fault="close-connect",
    ),
    Case(
        "error-400",
        "upstream",
        "it refuses the request (400)",
        **both(failed("upstream_error")),
        fault="error-400",
    ),
    Case(
        "error-401",
        "upstream",
        "it refuses our credential (401)",
        **both(failed("no_capacity")),
        fault="error-401",
    ),
    Case(
        "429",
        "upstream",
        "it is over its rate limit (429)",
        **both(failed("upstream_error")),
        fault="429-7",
    ),
    Case(
        "error-500",
        "upstream",
        "it fails (500)",
        **both(failed("upstream_error")),
        fault="error-500",
    ),
    Case(
        "529", "upstream", "it is overloaded (529)", **both(failed("upstream_error")), fault="529"
    ),
    Case(
        "200-error-body",
        "upstream",
        "200 with an error in the body",
        **both(failed("upstream_error")),
        fault="200-error-body",
    ),
    Case(
        "stall-first",
        "upstream",
        "no first byte in time",
        **both(failed("timeout")),
        fault="stall-first",
    ),
    Case(
        "hang-head",
        "upstream",
        "it stops inside the response head",
        **both(failed("timeout")),
        fault="hang-head",
    ),
    Case(
        "empty",
        "upstream",
        "an answer without content",
        **both(failed("upstream_empty")),
        fault="empty",
    ),
    Case(
        "truncated-json",
        "upstream",
        "half a JSON body",
        stream=None,
        whole=failed("upstream_error"),
        fault="truncated-json",
    ),
    Case(
        "bad-json",
        "upstream",
        "a body that is no JSON",
        stream=None,
        whole=failed("upstream_error"),
        fault="bad-json",
    ),
    Case(
        "cut-mid-stream",
        "stream",
        "the connection breaks inside the answer",
        **both(failed("upstream_truncated")),
        fault="cut-mid-stream",
    ),
    Case(
        "error-mid-stream",
        "stream",
        "an error event inside the answer",
        stream=failed("upstream_stream_error"),
        whole=None,
        fault="error-mid-stream",
    ),
    Case(
        "stall-60",
        "stream",
        "it falls silent inside the answer",
        **both(failed("timeout")),
        fault="stall-60",
    ),
    Case(
        "cut-after-finish",
        "stream",
        "it ends without usage and end marker",
        stream=failed("upstream_truncated"),
        whole=None,
        fault="cut-after-finish",
    ),
    Case(
        "no-usage",
        "none",
        "a whole answer that tells no usage (billed by estimate)",
        **both(DONE),
        fault="no-usage",
    ),
    Case(
        "gone-before",
        "upstream",
        "the client hangs up before the first content",
        **both(GONE),
        fault="stall-first",
    ),
    Case(
        "gone-after",
        "stream",
        "the client hangs up after the first content",
        stream=("client_aborted", ""),
        whole=None,
        fault="slow-300",
    ),
    Case(
        "budget",
        "stream",
        "the budget is used up inside the answer",
        stream=("budget_cut", ""),
        whole=None,
        fault="slow-3",
    ),
    Case(
        "revoked-before",
        "upstream",
        "the key is revoked before the first content",
        stream=failed("invalid_api_key"),
        whole=None,
        fault="stall-first",
    ),
    Case(
        "revoked",
        "stream",
        "the key is revoked after the first content",
        stream=("budget_cut", ""),
        whole=DONE,
        fault="stall-4",
    ),
    Case(
        "crash-request",
        "gateway",
        "kill -9 before the upstream call",
        **both(ABANDONED),
        point="edge.after_request",
    ),
    Case(
        "crash-stream",
        "gateway",
        "kill -9 inside the stream",
        stream=ABANDONED,
        whole=None,
        point="edge.mid_stream",
    ),
    Case(
        "crash-terminal",
        "gateway",
        "kill -9 before the bill is on disk",
        **both(ABANDONED),
        point="edge.before_terminal",
    ),
    Case(
        "crash-last",
        "gateway",
        "kill -9 after it, before the last bytes",
        **both(DONE),
        point="edge.after_terminal",
    ),
)


def cell(ending: tuple[str, str] | None) -> str:
    if ending is None:
        return "-"
    outcome, code = ending
    if outcome in BILLED:
        return f"{BILLED[outcome]} `{outcome}`"
    return f"free `{outcome}`" + (f" `{code}`" if code != outcome else "")


def table() -> str:
    rows = ["| stage | what happens | streaming | JSON |", "| --- | --- | --- | --- |"]
    rows += [f"| {c.stage} | {c.what} | {cell(c.stream)} | {cell(c.whole)} |" for c in CASES]
    return "\n".join(rows)


def rendered(page: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text("utf-8")), "utf-8")
