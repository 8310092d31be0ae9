"""Signed receipts at the edge: `GET /v1/receipts/{request_id}` and `/v1/receipts/keys`."""

import json

import pytest

from services.core.receipts import published, verify
from tests.parts.feature import assert_accounted, wait_until
from tests.parts.wire import PATHS, post, request


@pytest.mark.parametrize("dialect", PATHS)
def test_a_billed_request_has_a_receipt(stack, dialect, tmp_path):
    key = stack.new_key()
    reply = post(stack, dialect, key, stream=True)
    assert reply.body()
    row = stack.wait_for_rows(1, key)[0]
    path = f"/v1/receipts/{row['request_id']}"
    wait_until(lambda: request(stack.port, "GET", path, key=key).status == 200)
    answer = request(stack.port, "GET", path, key=key)
    assert_accounted(answer)
    document = answer.json()
    keys = request(stack.port, "GET", "/v1/receipts/keys").json()
    receipt = verify(document, published(keys))
    assert receipt["charged_nano"] == row["cost_nano"] > 0
    assert receipt["request_id"] == row["request_id"]
    assert receipt["api_key_id"] == row["api_key_id"]
    assert receipt["usage"]["output"] == row["output_tokens"]
    assert receipt["price_version"] == row["price_version"]
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(document))
    assert "genuine" in stack.cli("receipt", "verify", str(file)).stdout
    file.write_text(json.dumps(document).replace(dialect, "other"))
    assert stack.cli("receipt", "verify", str(file), check=False).returncode == 1

    stranger = stack.new_key()
    for other_path, other_key, status in (
        (path, stranger, 404),
        ("/v1/receipts/nothing%20of%0D%0Aours", key, 404),
        (path, "sk-toll-wrong", 401),
    ):
        assert request(stack.port, "GET", other_path, key=other_key).status == status


def test_a_failed_request_has_none(stack):
    key = stack.new_key(group="fault-error-500")
    reply = post(stack, "anthropic", key, stream=False)
    assert reply.status >= 500
    row = stack.wait_for_rows(1, key)[0]
    assert row["cost_nano"] == 0
    assert request(stack.port, "GET", f"/v1/receipts/{row['request_id']}", key=key).status == 404
