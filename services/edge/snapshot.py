"""The worker's copy of the catalog: kept while a polled version row stays the same, then read
again, of some accounts only when no more has changed.

A worker whose poll fails keeps serving for `grace_s`, then refuses with 503: what it knows about
revoked keys is too old to act on."""

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, Final

from schemas.errors import Code
from services.backends.clock import Clock
from services.backends.sql.catalog import Catalog
from services.core.access import KeyRules, rules_of
from services.core.addresses import Networks, client_text
from services.core.catalog import Account, Channel, Key, Snapshot
from services.core.errors import Refusal
from services.core.routing import ModelIndex
from services.edge.threads import Threads
from services.edge.upstream import Target

UNKNOWN_KEYS_MAX: Final = 10_000
UNKNOWN_KEY_S: Final = 1.0
LOOKUPS_MAX: Final = 50  # of unknown keys, in a second


class _Derived:
    """What follows from channels and prices, and the rules of keys beside the keys that they are
    of."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.index = ModelIndex(snapshot.prices.book)
        self.targets = {
            channel.name: Target.from_url(channel.base_url.rstrip("/").removesuffix("/v1"))
            for channel in snapshot.channels
        }
        self.credentials = {
            channel.name: _credential_line(channel) for channel in snapshot.channels
        }
        self.rules: dict[str, tuple[Key, KeyRules]] = {}


class View:
    """One snapshot with what is derived from it once: the model index, upstream targets, and the
    rules of the keys that are used. What only repeats `before` is taken over from it."""

    def __init__(
        self, snapshot: Snapshot, trusted_proxies: Networks, before: "View | None" = None
    ) -> None:
        self.snapshot = snapshot
        self._trusted_proxies = trusted_proxies
        self.version = snapshot.version
        self.prices = snapshot.prices
        self._derived: _Derived
        if before is not None and before.snapshot.channels is snapshot.channels:
            self._derived = before._derived
        else:
            self._derived = _Derived(snapshot)
        self.index = self._derived.index
        self.targets = self._derived.targets
        self.credentials = self._derived.credentials

    def account(self, account_id: str) -> Account:
        return self.snapshot.accounts[account_id]

    def rules(self, key: Key) -> KeyRules:
        """What the key is bound to; worked out at its first use. It is another object once anything
        of its account has changed."""
        known = self._derived.rules.get(key.id)
        if known is not None and known[0] is key:
            return known[1]
        parent = self.key(key.parent_id) if key.parent_id is not None else None
        rules = rules_of(self.snapshot, key, parent)
        self._derived.rules[key.id] = (key, rules)
        return rules

    def key(self, key_id: str) -> Key | None:
        """The key of that id."""
        return self.snapshot.keys_by_id.get(key_id)

    def client_address(self, environ: Mapping[str, Any]) -> str:
        """Where the request comes from: the other end of the connection, or what trusted proxies
        say."""
        forwarded = environ.get("HTTP_X_FORWARDED_FOR", "")
        return client_text(environ.get("REMOTE_ADDR", ""), forwarded, self._trusted_proxies)


class Snapshots:
    """Holds the current view. `poll` runs in the worker's poll loop, `find_key` on a request."""

    def __init__(
        self,
        catalog: Catalog,
        threads: Threads,
        clock: Clock,
        grace_s: float,
        trusted_proxies: Networks,
    ) -> None:
        self._trusted_proxies = trusted_proxies
        self._catalog = catalog
        self._threads = threads
        self._clock = clock
        self._grace_s = grace_s
        self._confirmed_s = clock.monotonic_s()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._lookups: deque[float] = deque(maxlen=LOOKUPS_MAX)  # when the latest were made
        self._readings = self._shown = 0  # numbers of the last reading begun and the one in use
        self._view = View(catalog.snapshot(clock.now_us()), trusted_proxies)

    def view(self) -> View:
        """The current view. Raises Refusal(UNAVAILABLE) when it is older than the grace."""
        if not self.fresh:
            raise Refusal(Code.UNAVAILABLE, "the catalog cannot be read; try again shortly")
        return self._view

    @property
    def current(self) -> View:
        """The view as it is, however old."""
        return self._view

    @property
    def age_s(self) -> float:
        """Since the view was last known to be the catalog's present state."""
        return self._clock.monotonic_s() - self._confirmed_s

    @property
    def fresh(self) -> bool:
        return self.age_s <= self._grace_s

    def poll(self) -> None:
        """Reads the version row and, when it moved, what has changed."""
        started_s = self._clock.monotonic_s()
        version = self._threads.apply(self._catalog.version)
        if version != self._view.version:
            self._reload()
        self._confirmed_s = started_s

    def _reload(self) -> None:
        """Of two readings at once the one that began later counts: a key that this worker said to
        refuse must not come back with the earlier one."""
        self._readings += 1
        reading = self._readings
        call = (self._clock.now_us(), self._view.snapshot)
        found = self._threads.apply(self._catalog.snapshot, call)
        if reading < self._shown:
            return
        self._shown = reading
        self._view = View(found, self._trusted_proxies, self._view)
        self._unknown.clear()

    def missing(self, secret_sha256: str) -> None:
        """A key that the view does not hold may be a moment old: asks the centre once, and
        remembers a no for a second. Of a flood of wrong keys only so many a second become database
        load; a new one is then known with the next poll."""
        now_s = self._clock.monotonic_s()
        if self._unknown.get(secret_sha256, -UNKNOWN_KEY_S) + UNKNOWN_KEY_S > now_s:
            return
        lookups = self._lookups
        if len(lookups) == LOOKUPS_MAX and lookups[0] + UNKNOWN_KEY_S > now_s:
            return
        lookups.append(now_s)
        found = self._threads.apply(self._catalog.key_by_sha256, (secret_sha256,))
        if found is not None:
            self.poll()  # reads nothing for a key that died long ago: it is in no view
        if secret_sha256 not in self._view.snapshot.keys:
            self._unknown[secret_sha256] = now_s
            if len(self._unknown) > UNKNOWN_KEYS_MAX:
                self._unknown.popitem(last=False)


def _credential_line(channel: Channel) -> bytes:
    """The header line that authenticates us to the channel's vendor."""
    if not channel.credential:
        return b""
    name = "x-api-key: " if channel.dialect == "anthropic" else "authorization: Bearer "
    if any(ord(c) < 32 or ord(c) > 126 for c in channel.credential):
        raise ValueError(f"channel {channel.name}: the credential holds a control character")
    return f"{name}{channel.credential}\r\n".encode("latin-1")
