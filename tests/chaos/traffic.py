"""Clients of every kind, and what each of them saw: three dialects, streams and JSON, hang-ups,
providers that fail in every way, wallets and quotas that run dry and are filled again, keys that
are revoked. Each request carries a number of its own as its session id, which the provider's log,
the events and the rows repeat."""

import contextlib
import json
import random
import threading
import time
import uuid
from dataclasses import dataclass

from services.backends.sql.engine import DatabaseUnavailable
from services.core.keys import sha256_hex
from services.core.money import parse_usd
from tests.chaos.installation import Installation
from tests.parts.stack import DIALECTS
from tests.parts.wire import PATHS, Reply, request

CLIENTS = 12
FAULTS = (
    "error-500",
    "429-7",
    "200-error-body",
    "cut-mid-stream",
    "error-mid-stream",
    "cut-after-finish",
    "close-connect",
    "empty",
    "no-usage",
    "truncated-json",
    "huge-usage",
    "stall-60",
)
GROUPS = ("default", "slow-3", "over-error-503", *(f"fault-{name}" for name in FAULTS))
MODELS = {
    "anthropic": ("claude-haiku-4-5", "claude-sonnet-4-5"),
    "chat": ("gpt-5-mini", "gpt-4o"),
    "responses": ("gpt-5-mini", "gpt-4o"),
}
# What begins an error inside a stream, and what ends a sound one.
ERRORS = (b'"type":"error"', b'"type": "error"', b"event: error", b'"response.failed"', b'{"error"')
ENDS = {
    "anthropic": b"event: message_stop",
    "chat": b"data: [DONE]",
    "responses": (b"event: response.completed", b"event: response.incomplete"),
}


@dataclass
class Seen:
    """One request as its client saw it. `whole`: a complete answer without an error in it."""

    session: str
    key: str
    group: str
    dialect: str
    stream: bool
    began_s: float
    hangs_up: bool = False
    status: int = 0
    request_id: str = ""
    whole: bool = False
    error: bool = False


@dataclass
class Wallet:
    """An account with its keys (secret, group); `poor` ones are always near their limits."""

    account: str
    keys: list[tuple[str, str]]
    poor: bool


class Traffic:
    """Runs until `stop`; afterwards `seen` holds every request and `revoked` when each of those
    keys was gone (monotonic seconds)."""

    def __init__(self, program: Installation, seed: int, clients: int = CLIENTS) -> None:
        self._program = program
        self._seed = seed
        self._over = threading.Event()
        self.seen: list[Seen] = []
        self.revoked: dict[str, float] = {}
        self.topped_up = 0
        self.failures: list[str] = []
        self._wallets = [self._wallet(number) for number in range(6)]
        self._threads = [
            threading.Thread(target=self._guarded, args=[self._client, number], daemon=True)
            for number in range(clients)
        ]
        self._threads.append(
            threading.Thread(target=self._guarded, args=[self._cashier, 0], daemon=True)
        )

    def _wallet(self, number: int) -> Wallet:
        poor = number >= 3
        program = self._program
        account = program.new_account("0.02" if poor else "1000")
        keys = [(program.new_key(group, account=account), group) for group in GROUPS]
        keys += [
            (program.new_key(group, quota="0.01", account=account), group)
            for group in ("default", "default", "slow-3")
        ]
        return Wallet(account, keys, poor)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            if thread.is_alive():
                self.failures.append(f"{thread.name} did not end")

    def _guarded(self, work, number: int) -> None:
        rng = random.Random(f"{self._seed}:{work.__name__}:{number}")
        while not self._over.is_set():
            try:
                work(rng, number)
            except Exception as ex:
                self.failures.append(f"{work.__name__}: {ex!r}")
                return

    # -- clients ----------------------------------------------------------------------------

    def _client(self, rng: random.Random, number: int) -> None:
        wallet = rng.choice(self._wallets)
        usual = [pair for pair in wallet.keys if pair[1] in ("default", "slow-3")]
        key, group = rng.choice(usual if rng.random() < 0.7 else wallet.keys)
        dialect = rng.choice(DIALECTS)
        seen = Seen(
            session=f"{self._seed}-{number}-{uuid.UUID(int=rng.getrandbits(128)).hex}",
            key=key,
            group=group,
            dialect=dialect,
            stream=rng.random() < 0.7,
            began_s=time.monotonic(),
            hangs_up=rng.random() < 0.1,
        )
        self.seen.append(seen)
        with contextlib.suppress(OSError, ValueError):  # its worker died, or never came
            self._ask(seen, rng)
        self._over.wait(rng.uniform(0, 0.15) if seen.status == 200 else 0.1)

    def _ask(self, seen: Seen, rng: random.Random) -> None:
        body = _body(seen, rng)
        reply = request(
            self._program.port,
            "POST",
            PATHS[seen.dialect],
            key=seen.key,
            body=body,
            timeout_s=30,
        )
        try:
            seen.status = reply.status
            seen.request_id = reply.header("x-tollgate-request-id")
            self._read(seen, reply, rng)
        finally:
            reply.close()

    def _read(self, seen: Seen, reply: Reply, rng: random.Random) -> None:
        got = b""
        patience = rng.randrange(0, 6) if seen.hangs_up else -1
        for number, (_, data) in enumerate(reply.reads()):
            got += data
            if number == patience:
                return
        seen.error = seen.status != 200 or any(mark in got for mark in ERRORS)
        ends = ENDS[seen.dialect]
        marks = (ends,) if isinstance(ends, bytes) else ends
        ended = any(mark in got for mark in marks) if seen.stream else _is_json(got)
        seen.whole = reply.whole and ended and not seen.error

    # -- wallets and keys -------------------------------------------------------------------

    def _cashier(self, rng: random.Random, number: int) -> None:
        """Fills poor wallets a little, each time twice under one external id; revokes a key now
        and then and makes another."""
        self._over.wait(rng.uniform(0.2, 1.0))
        wallet = rng.choice(self._wallets)
        books = self._program._open_books()
        try:
            if rng.random() < 0.15:
                self._revoke(wallet, rng)
            elif wallet.poor:
                name = f"chaos-{rng.getrandbits(60)}"
                nano = parse_usd(f"0.0{rng.randint(1, 9)}")
                for _ in range(2):
                    books.wallets.move(wallet.account, "topup", nano, name, "chaos")
                self.topped_up += 1
        except DatabaseUnavailable:
            pass  # the same again under another name later

    def _revoke(self, wallet: Wallet, rng: random.Random) -> None:
        catalog = self._program._open_books().catalog
        at = rng.randrange(len(wallet.keys))
        secret, group = wallet.keys[at]
        digest = sha256_hex(secret)
        (key,) = [k for k in catalog.keys(wallet.account) if k.secret_sha256 == digest]
        wallet.keys[at] = (self._program.new_key(group, account=wallet.account), group)
        catalog.revoke_key(key.id)
        self.revoked[secret] = time.monotonic()


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _body(seen: Seen, rng: random.Random) -> bytes:
    words = min(int(rng.lognormvariate(4.0, 1.0)) + 1, 1500)
    text = "x" * rng.randrange(0, 400) + f" sim:words {words}"
    asked = {"model": rng.choice(MODELS[seen.dialect]), "stream": seen.stream}
    limit = rng.choice((200, 1000, 4000))
    if seen.dialect == "responses":
        asked |= {"max_output_tokens": limit, "prompt_cache_key": seen.session, "input": text}
        return json.dumps(asked).encode()
    if seen.dialect == "chat":
        asked["prompt_cache_key"] = seen.session
    else:
        asked["metadata"] = {"user_id": json.dumps({"session_id": seen.session})}
    asked |= {"max_tokens": limit, "messages": [{"role": "user", "content": text}]}
    return json.dumps(asked).encode()
