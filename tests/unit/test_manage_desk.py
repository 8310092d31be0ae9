"""Who sees and changes which key."""

import pytest

from services.core.catalog import Key
from services.edge.manage.desk import OPERATOR, Manager, is_limited


def key(name, **fields):
    return Key(id=name, account_id="acct", name="", masked="", secret_sha256="", group="", **fields)


PLAIN = key("plain")
LIMITED = key("limited", quota_nano=5)
CHILD = key("child", parent_id="limited")
ANN = key("ann", member_id="ann")
ANN_LIMITED = key("ann-limited", member_id="ann", window_5h_nano=5)
BEN = key("ben", member_id="ben")
OWNER = key("owner", member_id="boss")
ELSE = Key(id="else", account_id="other", name="", masked="", secret_sha256="", group="")
ALL = (PLAIN, LIMITED, CHILD, ANN, ANN_LIMITED, BEN, OWNER, ELSE)
BOSS = frozenset({"boss"})
OURS = ALL[:-1]


@pytest.mark.parametrize(
    ("manager", "sees", "changes"),
    [
        (OPERATOR, ALL, ALL),
        (Manager("x", PLAIN), OURS, OURS),
        (Manager("x", ANN, "owner"), OURS, OURS),
        (Manager("x", OWNER, "owner", BOSS), OURS, OURS),
        # Whoever could reveal or rotate an owner's key, or one of the org itself, were an owner.
        (Manager("x", ANN, "admin", BOSS), OURS, (ANN, ANN_LIMITED, BEN)),
        (Manager("x", ANN, "member"), (ANN, ANN_LIMITED), (ANN, ANN_LIMITED)),
        (Manager("x", ANN_LIMITED, "admin"), (ANN_LIMITED,), ()),
        (Manager("x", LIMITED), (LIMITED, CHILD), (CHILD,)),
        (Manager("x", CHILD), (CHILD,), ()),
    ],
)
def test_who_sees_and_changes_what(manager, sees, changes):
    assert tuple(each for each in ALL if manager.sees(each)) == sees
    assert tuple(each for each in ALL if manager.changes(each)) == changes


@pytest.mark.parametrize(
    "rule",
    [
        {"quota_nano": 1}, {"window_5h_nano": 1}, {"window_1d_nano": 1}, {"window_7d_nano": 1},
        {"ip_allow": ("10.0.0.0/8",)}, {"ip_deny": ("10.0.0.0/8",)}, {"models": ("m",)},
        {"concurrency": 1}, {"requests_per_min": 1}, {"tokens_per_min": 1}, {"expires_at": 1},
        {"parent_id": "k"},
    ],
    ids=str,
)  # fmt: skip
def test_every_rule_of_its_own_limits_a_key(rule):
    assert is_limited(key("k", **rule))
    assert not is_limited(key("k", member_id="m"))
