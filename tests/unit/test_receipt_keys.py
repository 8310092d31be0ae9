"""Receipts: canonical bytes, signatures, keys and their rotation."""

import copy
import json
import threading

import pytest

from schemas.errors import Outcome
from schemas.events import Usage
from services.backends.receipt_keys import ReceiptKeys, ReceiptKeysDamaged
from services.core.receipts import (
    NotGenuine,
    SigningKey,
    canonical,
    encoded,
    published,
    receipt_of,
    verify,
)

EVENT = Usage(
    event_id="r:usage",
    account_id="acct_1",
    key_id="key_1",
    request_id="r",
    occurred_at=1_800_000_000_123_456,
    source="edge",
    status=200,
    outcome=Outcome.COMPLETED,
    dialect="anthropic",
    model="claude-latest",
    priced_as="claude-sonnet-4-6",
    upstream_model="claude-sonnet-4-6-20250930",
    group="default",
    price_version="pv_1",
    usage={"input": 10, "output": 3},
    multiplier_ppm=1_000_000,
    cost_nano=75,
    charged_nano=70,
    written_off_nano=5,
)


def _signed():
    key = SigningKey(bytes(range(32)))
    return key, key.sign(receipt_of(EVENT))


def test_what_a_receipt_says():
    receipt = receipt_of(EVENT)
    assert receipt["charged_nano"] == 70
    assert receipt["charged_usd"] == "0.00000007"
    assert receipt["time"] == "2027-01-15T08:00:00.123456Z"
    assert (receipt["model_asked"], receipt["model_served"]) == (EVENT.model, EVENT.upstream_model)
    assert receipt["api_key_id"] == "key_1"
    assert "channel" not in receipt


def test_a_published_vector():
    """RFC 8032, section 7.1, test 1: our key and signature are the standard's."""
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = SigningKey(secret)
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_canonical_bytes():
    assert canonical({"b": [1, "ü\n"], "a": None}) == '{"a":null,"b":[1,"ü\\n"]}'.encode()
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})


def test_genuine_also_after_a_round_trip():
    key, document = _signed()
    again = json.loads(json.dumps(document, indent=3))
    assert verify(again, {key.key_id: key.public}) == receipt_of(EVENT)


def _changes():
    yield lambda d: d["receipt"].update(charged_nano=1)
    yield lambda d: d["receipt"].update(extra="x")
    yield lambda d: d["receipt"].pop("time")
    yield lambda d: d["receipt"].update(v=2)
    yield lambda d: d["receipt"]["usage"].update(output=4)
    yield lambda d: d["signature"].update(key_id="rk_0")
    yield lambda d: d["signature"].update(alg="none")
    yield lambda d: d["signature"].update(value="")
    yield lambda d: d["signature"].update(value="!!!")
    yield lambda d: d["signature"].update(value=encoded(bytes(64)))
    yield lambda d: d.update(more=1)
    yield lambda d: d.pop("signature")
    yield lambda d: d.update(receipt=[])


@pytest.mark.parametrize("change", list(_changes()))
def test_nothing_can_be_changed(change):
    key, document = _signed()
    changed = copy.deepcopy(document)
    change(changed)
    with pytest.raises(NotGenuine):
        verify(changed, {key.key_id: key.public})


def test_keys_are_made_once_and_rotated(tmp_path):
    keys = ReceiptKeys(tmp_path)
    first = keys.signing()
    assert ReceiptKeys(tmp_path).signing().key_id == first.key_id
    old = first.sign(receipt_of(EVENT))
    second = ReceiptKeys(tmp_path).rotate()
    assert keys.signing().key_id == second != first.key_id, "seen by whoever had the old one"
    listed = keys.published()["keys"]
    assert [each["key_id"] for each in listed] == [second, first.key_id]
    assert [each["retired_at"] is None for each in listed] == [True, False]
    public = published(keys.published())
    assert verify(old, public)
    assert verify(keys.signing().sign(receipt_of(EVENT)), public)
    private = list((tmp_path / "receipts").glob("*.key"))
    assert [path.stem for path in private] == [second]
    assert private[0].stat().st_mode & 0o777 == 0o600
    private[0].unlink()
    with pytest.raises(ReceiptKeysDamaged):
        ReceiptKeys(tmp_path).signing()


def test_many_that_start_at_once_make_one_key(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(ReceiptKeys(tmp_path).signing().key_id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_damaged_key_lists_are_refused():
    key, _ = _signed()
    entry = {"key_id": key.key_id, "public_key": encoded(key.public)}
    assert published({"keys": [entry]}) == {key.key_id: key.public}
    for wrong in (
        None,
        {},
        {"keys": [1]},
        {"keys": [{**entry, "key_id": "rk_1"}]},
        {"keys": [{**entry, "public_key": "AAAA"}]},
    ):
        with pytest.raises(ValueError, match="key"):
            published(wrong)
