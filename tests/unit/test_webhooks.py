"""Signatures as receivers compute them, and the schedule of attempts."""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import webhooks

# The example of the Standard Webhooks specification.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIME = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_example_of_the_standard():
    assert webhooks.sign(SECRET, ID, TIME, BODY) == SIGNATURE
    assert webhooks.headers([SECRET], ID, TIME, BODY) == {
        "webhook-id": ID,
        "webhook-timestamp": "1614265330",
        "webhook-signature": SIGNATURE,
    }


@given(body=st.binary(max_size=2000), time=st.integers(0, 10**11), name=st.uuids())
def test_signatures_equal_an_independent_computation(body, time, name):
    secret = webhooks.new_secret()
    key = base64.b64decode(secret.split("_")[1])
    signed = b"%s.%d.%s" % (str(name).encode(), time, body)
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert webhooks.sign(secret, str(name), time, body) == f"v1,{expected}"
    told = webhooks.headers([secret], str(name), time, body)
    assert webhooks.verify(secret, told, body, time)


def test_both_secrets_sign_while_one_is_being_changed():
    old, new = webhooks.new_secret(), webhooks.new_secret()
    told = webhooks.headers([new, old], ID, TIME, BODY)
    assert told["webhook-signature"].count("v1,") == 2
    assert webhooks.verify(old, told, BODY, TIME)
    assert webhooks.verify(new, told, BODY, TIME)
    assert not webhooks.verify(webhooks.new_secret(), told, BODY, TIME)


def test_what_was_changed_is_not_verified():
    told = webhooks.headers([SECRET], ID, TIME, BODY)
    assert webhooks.verify(SECRET, told, BODY, TIME + 300)
    assert not webhooks.verify(SECRET, told, BODY, TIME + 301)
    assert not webhooks.verify(SECRET, told, BODY, TIME - 301)
    assert not webhooks.verify(SECRET, told, BODY + b" ", TIME)
    for name, value in (
        ("webhook-id", "msg_other"),
        ("webhook-timestamp", str(TIME + 1)),
        ("webhook-timestamp", "soon"),
        ("webhook-timestamp", "9" * 5000),
        ("webhook-signature", SIGNATURE[:-2]),
        ("webhook-signature", SIGNATURE.replace("v1,", "v2,")),
        ("webhook-signature", "ä"),
    ):
        assert not webhooks.verify(SECRET, {**told, name: value}, BODY, TIME), (name, value)
        assert not webhooks.verify(
            SECRET, {key: kept for key, kept in told.items() if key != name}, BODY, TIME
        )


def test_secrets():
    made = {webhooks.new_secret() for _ in range(20)}
    assert len(made) == 20
    assert {len(webhooks.secret_bytes(secret)) for secret in made} == {32}
    wrong = ["", "whsec_", "whsec_short", "whsec_!!!!", SECRET[6:], "sk_" + SECRET[6:]]
    wrong += ["whsec_" + base64.b64encode(bytes(size)).decode() for size in (23, 65)]
    for secret in wrong:
        with pytest.raises(webhooks.BadSecret):
            webhooks.secret_bytes(secret)


def test_the_signature_of_the_body_is_one_line_at_the_receiver():
    expected = hmac.new(b"0123456789abcdef", BODY, hashlib.sha256).hexdigest()
    assert webhooks.body_signature("0123456789abcdef", BODY) == expected


def test_the_schedule_is_the_standards():
    delays = [webhooks.next_delay_s(attempts, 0.0) for attempts in range(1, 12)]
    hours = [2, 5, 10, 14, 20, 24]
    assert delays == [5, 300, 1800, *(3600 * each for each in hours), None, None]
    assert webhooks.next_delay_s(1, 0.999) == pytest.approx(5.5, abs=0.01)
    assert webhooks.next_delay_s(0, 0.0) is None


def test_a_receiver_can_ask_for_more_time_within_reason():
    assert webhooks.next_delay_s(1, 0.0, retry_after_s=60) == 60
    assert webhooks.next_delay_s(2, 0.0, retry_after_s=1) == 300
    assert webhooks.next_delay_s(1, 0.0, retry_after_s=1e9) == 86_400


def test_what_an_answer_means():
    assert [webhooks.delivered(status) for status in (200, 204, 299, 301, 404, 500)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert [webhooks.disables(status) for status in (200, 404, 410)] == [False, False, True]
