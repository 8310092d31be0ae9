"""Who calls: from the request's credentials to a live key."""

from collections.abc import Mapping
from typing import Any

from services.core.access import check_address, credentials, live_key, pick_key
from services.core.catalog import Key
from services.core.errors import Refusal
from services.core.keys import sha256_hex
from services.edge.snapshot import Snapshots, View


def authenticate(
    snapshots: Snapshots,
    environ: Mapping[str, Any],
    headers: Mapping[str, str],
    query: Mapping[str, Any],
    now_us: int,
) -> tuple[View, Key]:
    """The current view and the first live key among the credentials, which may be used from where
    the request comes. `environ` is WSGI's, `headers` by lower-case name.

    Raises Refusal: INVALID_API_KEY, PERMISSION_DENIED (a paused account, an address that the key
    may not be used from), UNAVAILABLE when the catalog is too old to trust."""
    view, key = _live_key(snapshots, headers, query, now_us)
    rules = view.rules(key)
    if rules.addresses is not None:
        check_address(rules, view.client_address(environ))
    return view, key


def _live_key(
    snapshots: Snapshots, headers: Mapping[str, str], query: Mapping[str, Any], now_us: int
) -> tuple[View, Key]:
    """A key that the view does not know may have been made a moment ago: the view is renewed."""
    view = snapshots.view()
    secret = query.get("key", "")
    if isinstance(secret, list):  # falcon's reading of a repeated parameter
        secret = secret[-1]
    offered = credentials(headers, {"key": secret})
    try:
        return view, pick_key(view.snapshot, offered, now_us)
    except Refusal:
        if all(sha256_hex(secret) in view.snapshot.keys for secret in offered):
            raise
    snapshots.renew()
    view = snapshots.view()
    return view, pick_key(view.snapshot, offered, now_us)


def authenticate_id(snapshots: Snapshots, key_id: str, now_us: int) -> tuple[View, Key]:
    """The current view and the live key that a signed statement names; it may have been made a
    moment ago. Raises Refusal as `authenticate`."""
    view = snapshots.view()
    key = view.key(key_id)
    if key is None:
        snapshots.renew()
        view = snapshots.view()
        key = view.key(key_id)
    return view, live_key(view.snapshot, key, now_us)
