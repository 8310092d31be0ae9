"""The worker's copy of the catalog: kept while a polled version row stays the same, then read
again, of some accounts only when no more has changed.

A worker whose poll fails keeps serving for `grace_s`, then refuses with 503: what it knows about
revoked keys is too old to act on."""

from collections.abc import Mapping
from typing import Any, Final

import gevent
from gevent.lock import BoundedSemaphore

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

RENEWAL_S: Final = 0.02  # between two readings for keys that the view does not know


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
    """Holds the current view. `poll` runs in the worker's poll loop, `renew` on a request."""

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
        self._renewing = BoundedSemaphore()
        self._renewal: gevent.Greenlet[[], Exception | None] | None = None  # yet to begin
        self._renewed_s = self._confirmed_s - RENEWAL_S
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

    def renew(self) -> None:
        """Has the view hold all that was in the catalog when this was called: a key that it does
        not know may be a moment old. All who ask before a reading begins share it, so that a flood
        of wrong keys, or of first requests, is one question in `RENEWAL_S`. Raises what `poll`
        raises."""
        if self._renewal is None:
            self._renewal = gevent.spawn(self._renew)
        failed = self._renewal.get()
        if failed is not None:
            raise failed

    def _renew(self) -> Exception | None:
        with self._renewing:
            gevent.sleep(max(self._renewed_s + RENEWAL_S - self._clock.monotonic_s(), 0))
            self._renewed_s = self._clock.monotonic_s()
            self._renewal = None  # who asks from now on may want what this reading does not see
            try:
                self.poll()
            except Exception as ex:
                return ex
            return None


def _credential_line(channel: Channel) -> bytes:
    """The header line that authenticates us to the channel's vendor."""
    if not channel.credential:
        return b""
    name = "x-api-key: " if channel.dialect == "anthropic" else "authorization: Bearer "
    if any(ord(c) < 32 or ord(c) > 126 for c in channel.credential):
        raise ValueError(f"channel {channel.name}: the credential holds a control character")
    return f"{name}{channel.credential}\r\n".encode("latin-1")
