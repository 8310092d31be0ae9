"""The books against themselves: each statement selects what contradicts something else, as
(pair, subject, detail), and nothing when all is well."""

from typing import Any, Final

from sqlalchemy import Select, Text, cast, func, literal, or_, select, union_all

from services.backends.sql.lease_reads import LIVE
from services.backends.sql.tables import (
    api_key,
    applied,
    balance,
    lease,
    limit_row,
    posting,
    settlement,
    sql_outbox,
    wallet_movement,
)


def _finding(pair: str, subject: Any, detail: Any) -> Select[Any]:
    return select(literal(pair), subject, detail)


def _text(value: Any) -> Any:
    return cast(value, Text())


def _differs(left: str, left_nano: Any, right: str, right_nano: Any) -> Any:
    return literal(f"{left} ") + _text(left_nano) + f", {right} " + _text(right_nano)


def not_taken(outbox_up_to: int) -> Select[Any]:
    return (
        _finding("outbox-ledger", sql_outbox.c.event_id, literal("sent, but not applied"))
        .outerjoin_from(sql_outbox, applied, applied.c.event_id == sql_outbox.c.event_id)
        .where(applied.c.event_id.is_(None), sql_outbox.c.id <= outbox_up_to)
    )


def _orphan_settlements() -> Select[Any]:
    terminal = settlement.c.event_id.in_(
        [settlement.c.request_id + ":usage", settlement.c.request_id + ":error"]
    )
    return (
        _finding("bus-ledger", settlement.c.event_id, literal("a settlement without its event"))
        .outerjoin_from(settlement, applied, applied.c.event_id == settlement.c.event_id)
        .where(or_(applied.c.event_id.is_(None), ~terminal))
    )


def _orphan_postings() -> Select[Any]:
    return (
        _finding("bus-ledger", posting.c.event_id, literal("postings without their event"))
        .outerjoin_from(posting, applied, applied.c.event_id == posting.c.event_id)
        .where(applied.c.event_id.is_(None))
        .distinct()
    )


def _unbalanced() -> Select[Any]:
    total = func.sum(posting.c.amount_nano)
    return (
        _finding("postings", posting.c.event_id, literal("its postings sum to ") + _text(total))
        .group_by(posting.c.event_id)
        .having(total != 0)
    )


def _posted() -> Any:
    return (
        select(
            posting.c.ledger_account.label("account"),
            func.sum(posting.c.amount_nano).label("nano"),
            func.count().label("lines"),
        )
        .group_by(posting.c.ledger_account)
        .subquery()
    )


def _wrong_balances() -> Select[Any]:
    posted = _posted()
    nano, lines = func.coalesce(posted.c.nano, 0), func.coalesce(posted.c.lines, 0)
    return (
        _finding(
            "postings-balance",
            balance.c.ledger_account,
            _differs("balance", balance.c.amount_nano, "postings", nano),
        )
        .outerjoin_from(balance, posted, posted.c.account == balance.c.ledger_account)
        .where(or_(balance.c.amount_nano != nano, balance.c.postings != lines))
    )


def _missing_balances() -> Select[Any]:
    posted = _posted()
    return (
        _finding("postings-balance", posted.c.account, literal("postings without a balance"))
        .outerjoin_from(posted, balance, posted.c.account == balance.c.ledger_account)
        .where(balance.c.ledger_account.is_(None))
    )


def _wrong_wallets() -> Select[Any]:
    moved = (
        select(wallet_movement.c.account_id, func.sum(wallet_movement.c.amount_nano).label("nano"))
        .group_by(wallet_movement.c.account_id)
        .subquery()
    )
    nano = func.coalesce(moved.c.nano, 0)
    return (
        _finding(
            "movements-wallet",
            limit_row.c.subject,
            _differs("limit", limit_row.c.limit_nano, "movements", nano),
        )
        .outerjoin_from(limit_row, moved, moved.c.account_id == limit_row.c.subject)
        .where(limit_row.c.kind == "wallet", limit_row.c.limit_nano != nano)
    )


def _charged() -> Any:
    """Nano-USD by account, key and capped model. What was charged for a capped model only its
    leases tell: a settlement names none."""
    settled = select(
        settlement.c.account_id.label("account_id"),
        settlement.c.key_id.label("key_id"),
        literal("").label("model"),
        func.sum(settlement.c.charged_nano).label("nano"),
    ).group_by(settlement.c.account_id, settlement.c.key_id)
    capped = select(lease.c.account_id, lease.c.key_id, lease.c.model, lease.c.consumed_nano).where(
        lease.c.model != ""
    )
    return union_all(settled, capped).subquery("charged")


def _left() -> Any:
    """What live leases have left, by account, key and capped model: under its model and, like all
    others, without one."""
    rest = (lease.c.amount_nano - lease.c.consumed_nano).label("nano")
    every = select(lease.c.account_id, lease.c.key_id, literal("").label("model"), rest)
    capped = select(lease.c.account_id, lease.c.key_id, lease.c.model, rest)
    return union_all(every.where(LIVE), capped.where(LIVE, lease.c.model != "")).subquery("left")


def _by_limit(amounts: Any) -> Any:
    """The amounts (account_id, key_id, model, nano) summed for each subject of a limit: a key's
    count for it, its parent, its member, and of a capped model for the member's cap."""
    key = api_key.alias()
    whole, capped = amounts.c.model == "", amounts.c.model != ""
    nano = amounts.c.nano.label("nano")

    def of(subject: Any, condition: Any) -> Any:
        joined = amounts.outerjoin(key, key.c.id == amounts.c.key_id)
        return select(subject.label("subject"), nano).select_from(joined).where(condition)

    each = union_all(
        of(amounts.c.account_id, whole),
        of(amounts.c.key_id, whole),
        of(key.c.parent_id, whole & key.c.parent_id.is_not(None)),
        of(key.c.member_id, whole & key.c.member_id.is_not(None)),
        of(key.c.member_id + ":" + amounts.c.model, capped),
    ).subquery()
    return (
        select(each.c.subject, func.sum(each.c.nano).label("nano"))
        .group_by(each.c.subject)
        .subquery()
    )


def _wrong_sum(pair: str, column: Any, words: tuple[str, str], amounts: Any) -> Select[Any]:
    """Limits whose `column` is not the sum of `amounts` that count for their subject."""
    sums = _by_limit(amounts)
    nano = func.coalesce(sums.c.nano, 0)
    return (
        _finding(
            pair,
            limit_row.c.kind + ":" + limit_row.c.subject,
            _differs(words[0], column, words[1], nano),
        )
        .select_from(limit_row.outerjoin(sums, sums.c.subject == limit_row.c.subject))
        .where(column != nano)
    )


def _wrong_settled() -> Select[Any]:
    """A limit's settled sum is what its settlements charged; a window's counts what came before
    it was made, too."""
    return _wrong_sum(
        "settlements-limit", limit_row.c.settled_nano, ("settled", "charged"), _charged()
    )


def _wrong_leased() -> Select[Any]:
    """A limit's leased sum is what its live leases have left."""
    return _wrong_sum("leases-limit", limit_row.c.leased_nano, ("leased", "leases have"), _left())


def _wrong_consumed() -> Select[Any]:
    """What a key's leases consumed is what its settlements charged."""
    charged = (
        select(settlement.c.key_id, func.sum(settlement.c.charged_nano).label("nano"))
        .group_by(settlement.c.key_id)
        .subquery()
    )
    consumed = (
        select(lease.c.key_id, func.sum(lease.c.consumed_nano).label("nano"))
        .group_by(lease.c.key_id)
        .subquery()
    )
    nano = func.coalesce(charged.c.nano, 0)
    return (
        _finding(
            "settlements-leases",
            consumed.c.key_id,
            _differs("consumed", consumed.c.nano, "charged", nano),
        )
        .outerjoin_from(consumed, charged, charged.c.key_id == consumed.c.key_id)
        .where(consumed.c.nano != nano)
    )


# What settlements say of limits alone: a rebuilt ledger has no leases, which name capped models.
REBUILT_CHECKS: Final = (_wrong_settled().where(limit_row.c.kind != "member_model"),)
CHECKS: Final = (
    _orphan_settlements(),
    _orphan_postings(),
    _unbalanced(),
    _wrong_balances(),
    _missing_balances(),
    _wrong_wallets(),
    _wrong_settled(),
    _wrong_leased(),
    _wrong_consumed(),
)
