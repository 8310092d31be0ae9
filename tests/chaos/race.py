"""64 clients race for one dollar over several edge processes, round after round on one
installation, each with a new account. In every round what was charged stays within the limit; most
of it can be used; of streams that hold a part of their bound, few are cut.

    .venv/bin/python -m tests.chaos.race --rounds 200 --seed 1 [--form key|wallet|streams]

A round ends when a refusal comes while nothing is in flight. A refused client waits until an
answer has ended, which may have returned money, and the last one asks again when all are waiting.
"""

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, select

from services.backends.sql.engine import open_engine, read
from services.backends.sql.tables import settlement
from services.core.money import exact_usd
from tests.chaos.installation import Installation
from tests.parts.wire import PATHS, request, text_body

CLIENTS = 64
WORKERS = 8
LIMIT_NANO = 1_000_000_000
USABLE_MIN = 0.9
CUT_MAX = 0.1
ROUND_S = 120.0
FORMS = ("key", "wallet", "streams")
_WOKEN = 2  # by one answer that ended
_MODELS = {"anthropic": "claude-sonnet-4-5", "chat": "gpt-4o", "responses": "gpt-4o"}


@dataclass
class Round:
    """`seconds` until nobody could buy anything any more; the other figures come from the
    ledger."""

    form: str
    seed: int
    account: str
    seconds: float = 0.0
    asked: int = 0
    unavailable: int = 0  # asked, but told to come back
    problems: list[str] = field(default_factory=list)
    charged_nano: int = 0
    billed: int = 0
    cut: int = 0

    @property
    def usable(self) -> float:
        return self.charged_nano / LIMIT_NANO


class Race:
    """One round. `keys` is 1 or one for each client."""

    def __init__(self, program: Installation, form: str, seed: int) -> None:
        self._program = program
        self._streams = form == "streams"
        group = "slow-3" if self._streams else "default"
        # Streams race with one key and with many, round about.
        many = form == "wallet" or (self._streams and seed % 2)
        self.round = Round(form, seed, program.new_account("1"))
        self._keys = [
            program.new_key(group, account=self.round.account)
            for _ in range(CLIENTS if many else 1)
        ]
        self._turn = threading.Condition()
        self._in_flight = self._waiting = self._woken = 0
        self._over = False

    def run(self) -> Round:
        began_s = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(self._client, range(CLIENTS)))
        self.round.seconds = time.monotonic() - began_s
        return self.round

    def _client(self, number: int) -> None:
        rng = random.Random(f"{self.round.form}:{self.round.seed}:{number}")
        key = self._keys[number % len(self._keys)]
        while not self._over:
            with self._turn:
                alone = self._in_flight == 0
                self._in_flight += 1
                self.round.asked += 1
            status = self._ask(key, rng)
            with self._turn:
                self._in_flight -= 1
                if status == 402:
                    self._refused(alone)
                else:
                    self._wake(_WOKEN)
                if status == 503:
                    self.round.unavailable += 1
                elif status not in (200, 402):
                    self.round.problems.append(f"status {status}")

    def _refused(self, alone: bool) -> None:
        """Waits for a turn. The last one asks again, and when it began with nothing in flight
        the race is over."""
        if self._in_flight == 0 and not self._woken:
            self._over = alone
            self._turn.notify_all()
            return
        self._waiting += 1
        until_s = time.monotonic() + ROUND_S
        while not self._over and not self._woken:
            if not self._turn.wait(1.0) and time.monotonic() > until_s:
                self.round.problems.append("the race did not end in time")
                self._over = True
        self._woken = max(self._woken - 1, 0)
        self._waiting -= 1

    def _wake(self, count: int) -> None:
        more = min(count, self._waiting - self._woken)
        self._woken += max(more, 0)
        self._turn.notify_all()

    def _ask(self, key: str, rng: random.Random) -> int:
        dialect = rng.choice(list(_MODELS))
        stream = self._streams and rng.random() < 0.9
        if self._streams:
            words, limit = min(int(rng.lognormvariate(6.3, 0.7)), 4_000), 16_000 if stream else 2000
        else:  # a hold of 2 to 3 % of the limit, at most four times the cost of the answer
            words, limit = rng.randrange(500, 1_600), 2_000
        name = "max_output_tokens" if dialect == "responses" else "max_tokens"
        body = {name: limit, "text": f"sim:words {words}", "model": _MODELS[dialect]}
        try:
            reply = request(
                self._program.port,
                "POST",
                PATHS[dialect],
                key=key,
                body=text_body(dialect, stream=stream, **body),
                timeout_s=ROUND_S,
            )
            reply.body()
            reply.close()
        except OSError as ex:
            self.round.problems.append(repr(ex))
            return 0
        return reply.status


def race(
    program: Installation, forms: list[str], rounds: int, seed: int, at_once: int = 1
) -> Iterator[Round]:
    """Runs the rounds, so many at a time, as each has an account of its own; each comes out with
    its figures of the ledger."""
    engine = open_engine(program.config.database.url, program.data_dir)

    def one(wanted: tuple[str, int]) -> Round:
        done = Race(program, *wanted).run()
        _fill(engine, done)
        return done

    wanted = [(form, seed + number) for number in range(rounds) for form in forms]
    with ThreadPoolExecutor(at_once) as tables:
        yield from tables.map(one, wanted)


def _fill(engine, done: Round) -> None:
    """Waits until the ledger has every request of the round; then its figures."""
    deadline = time.monotonic() + 60
    query = (
        select(settlement.c.outcome, func.count(), func.sum(settlement.c.charged_nano))
        .where(settlement.c.account_id == done.account)
        .group_by(settlement.c.outcome)
    )
    while True:
        rows = read(engine, lambda connection: connection.execute(query).all())
        settled = sum(row[1] for row in rows)
        if settled >= done.asked - done.unavailable:
            break
        if time.monotonic() > deadline:
            done.problems.append(f"{settled} of {done.asked} settled")
            break
        time.sleep(0.05)
    done.charged_nano = int(sum(row[2] for row in rows))
    done.billed = sum(row[1] for row in rows if row[2])
    done.cut = sum(row[1] for row in rows if row[0] == "budget_cut")
    if done.charged_nano > LIMIT_NANO:
        done.problems.append(f"charged {exact_usd(done.charged_nano)} of 1")


def judge(done: list[Round]) -> list[str]:
    """What is wrong with the rounds of one form."""
    wrong = [f"seed {each.seed}: {problem}" for each in done for problem in each.problems]
    if done[0].form == "streams":
        cut, billed = sum(each.cut for each in done), sum(each.billed for each in done)
        if cut >= CUT_MAX * billed:
            wrong.append(f"{cut} of {billed} billed answers were cut")
    else:
        wrong += [
            f"seed {each.seed}: only {each.usable:.1%} usable"
            for each in done
            if each.usable < USABLE_MIN
        ]
    return wrong


def summary(done: list[Round]) -> str:
    """One line about the rounds of one form."""
    usable = [each.usable for each in done]
    cut, billed = sum(each.cut for each in done), sum(each.billed for each in done)
    return (
        f"{done[0].form}: {len(done)} rounds, usable {min(usable):.2%} min "
        f"{statistics.median(usable):.2%} median {max(usable):.2%} max, {billed} billed, "
        f"{cut} cut ({cut / max(billed, 1):.1%}), "
        f"{sum(each.unavailable for each in done)} of {sum(each.asked for each in done)} answers "
        f"503, {statistics.median(each.seconds for each in done):.1f} s a round"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=WORKERS, help="edge processes")
    parser.add_argument("--at-once", type=int, default=4, help="rounds at a time")
    parser.add_argument("--form", choices=FORMS, action="append", help="default: each")
    options = parser.parse_args(arguments)
    forms = options.form or list(FORMS)
    done: dict[str, list[Round]] = {form: [] for form in forms}
    with tempfile.TemporaryDirectory(prefix="tollgate-race-") as folder:
        program = Installation(Path(folder), {"edge": {"workers": options.workers}})
        try:
            program.start()
            for each in race(program, forms, options.rounds, options.seed, options.at_once):
                done[each.form].append(each)
                print(
                    f"{each.form} seed {each.seed}: {each.asked} asked, {each.billed} billed, "
                    f"{each.cut} cut, {each.usable:.2%}, {each.seconds:.1f} s "
                    f"{' '.join(each.problems)}",
                    flush=True,
                )
            told = program.reconcile()
            print(told.text())
        finally:
            program.stop()
    wrong = [problem for rounds in done.values() for problem in judge(rounds)]
    for rounds in done.values():
        print(summary(rounds))
    for problem in wrong[:50]:
        print(f"WRONG  {problem}")
    return 1 if wrong or told.exit_code else 0


if __name__ == "__main__":
    sys.exit(main())
