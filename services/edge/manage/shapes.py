"""What the management API says of a key, a member, an account: the names of the wire, USD."""

from collections.abc import Iterable
from typing import Any

from services.backends.sql.accounts import Balance, Transaction
from services.core.budgets import LimitState
from services.core.catalog import Account, Key, Member
from services.core.moments import rfc3339
from services.core.money import exact_usd

_KINDS = {
    "key_quota": "quota_used",
    "window_5h": "rate_limit_5h_used",
    "window_1d": "rate_limit_1d_used",
    "window_7d": "rate_limit_7d_used",
}


def key_body(key: Key) -> dict[str, Any]:
    """A key, masked. 0 is "no limit"."""
    return {
        "id": key.id,
        "name": key.name,
        "key": key.masked,
        "account_id": key.account_id,
        "parent_id": key.parent_id,
        "member_id": key.member_id,
        "group_id": key.group,
        "group": key.group,
        "status": key.status,
        "quota": limit_usd(key.quota_nano),
        "rate_limit_5h": limit_usd(key.window_5h_nano),
        "rate_limit_1d": limit_usd(key.window_1d_nano),
        "rate_limit_7d": limit_usd(key.window_7d_nano),
        "ip_whitelist": list(key.ip_allow),
        "ip_blacklist": list(key.ip_deny),
        "models": list(key.models),
        "concurrency": key.concurrency,
        "requests_per_min": key.requests_per_min,
        "tokens_per_min": key.tokens_per_min,
        "expires_at": None if key.expires_at is None else rfc3339(key.expires_at),
        "created_at": rfc3339(key.created_at),
    }


def used_body(key: Key, states: Iterable[LimitState]) -> dict[str, float]:
    """What is spent of the key's own quota and windows, settled."""
    by_id = {state.limit_id: state for state in states}
    found: dict[str, float] = {}
    for limit_id in key.limit_ids:  # its own before its parent's
        state = by_id.get(limit_id)
        name = _KINDS.get(state.kind) if state is not None else None
        if state is not None and name is not None:
            found.setdefault(name, usd(state.settled_nano))
    windows = {
        "rate_limit_5h_used": key.window_5h_nano,
        "rate_limit_1d_used": key.window_1d_nano,
        "rate_limit_7d_used": key.window_7d_nano,
    }
    return {name: value for name, value in found.items() if windows.get(name, 1) is not None}


def member_body(member: Member, used: dict[str, int] | None = None) -> dict[str, Any]:
    """A member of an org. 0 is "no limit"; `models` `["*"]` is every model."""
    return {
        "id": member.id,
        "org_id": member.account_id,
        "name": member.name,
        "email": member.email or None,
        "role": member.role,
        "status": member.status,
        "models": list(member.models),
        "quota": limit_usd(member.quota_nano),
        "model_caps": {
            model: usd(cap) for model, cap in member.caps_nano.items() if cap is not None
        },
        "concurrency": member.concurrency,
        "created_at": rfc3339(member.created_at),
    }


def account_body(account: Account, balance: Balance) -> dict[str, Any]:
    """An account with its wallet."""
    return {
        "id": account.id,
        "name": account.name,
        "kind": account.kind,
        "status": account.status,
        "concurrency": account.concurrency,
        "requests_per_min": account.requests_per_min,
        "tokens_per_min": account.tokens_per_min,
        "balance": {
            "available_usd": usd(balance.available_nano),
            "lifetime_topup_usd": usd(balance.topup_nano),
            "lifetime_spent_usd": usd(balance.settled_nano),
            "held_usd": usd(balance.pending_nano),
        },
        "created_at": rfc3339(account.created_at),
    }


def transaction_body(row: Transaction) -> dict[str, Any]:
    """One movement of a wallet."""
    return {
        "id": row.id,
        "created_at": rfc3339(row.created_at),
        "kind": row.movement,
        "amount_usd": usd(row.amount_nano),
        "balance_after_usd": usd(row.balance_after_nano),
        "source": {"actor": row.actor, "receipt_id": row.external_id or None},
        "note": row.note or None,
    }


def usd(nano: int) -> float:
    return float(exact_usd(nano))


def limit_usd(nano: int | None) -> float:
    """A limit; 0 for none."""
    return 0.0 if nano is None else usd(nano)
