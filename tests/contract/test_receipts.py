"""Receipts of a real ledger and log: who gets one, and that it verifies offline."""

import contextlib
import json
import threading

import msgspec
import pytest

from services.backends.clock import SystemClock
from services.backends.query_client import QueryClient, QueryFailed
from services.backends.receipt_keys import ReceiptKeys
from services.backends.settings import load_secret
from services.cli.main import main
from services.core.ids import uuid7_text
from services.core.receipts import published, verify
from services.meter.query_api import create_app
from services.meter.query_server import QueryServer
from services.meter.receipts import NoReceipt, Receipts
from tests.parts.books import USD

pytest_plugins = ["tests.parts.clickhouse_fixtures", "tests.parts.plant_fixture"]


@pytest.fixture
def settled(plant):
    """(lease, billed usage, failed request) in a plant that has caught up."""
    lease = plant.books.lease(plant.books.account(10), 2 * USD)
    request, usage = lease.pair()
    failed = lease.request()
    plant.write([request, usage, failed, lease.error(failed.request_id)])
    plant.catch_up(("relay", "ledger", "clickhouse"))
    return lease, usage, failed


def test_only_the_payer_of_a_billed_request_gets_one(plant, settled):
    lease, usage, failed = settled
    keys = ReceiptKeys(plant.config.data_dir)
    receipts = Receipts(plant.books.engine, plant.bus, keys)
    document = receipts.signed(lease.account_id, usage.request_id)
    found = verify(json.loads(json.dumps(document)), published(keys.published()))
    assert found["charged_nano"] == usage.charged_nano
    assert found["usage"] == usage.usage
    assert found["price_version"] == plant.books.prices.id
    assert found["api_key_id"] == lease.key_id
    for account_id, request_id in (
        ("acct_other", usage.request_id),
        (lease.account_id, failed.request_id),
        (lease.account_id, uuid7_text()),
        (lease.account_id, "x' OR 1=1"),
        (lease.account_id, f"{usage.request_id}\0"),
    ):
        with pytest.raises(NoReceipt):
            receipts.signed(account_id, request_id)


def test_a_log_that_holds_something_else_makes_no_receipt(plant, settled):
    lease, usage, _ = settled

    class Other:
        def read(self, *where):
            return [m._replace(value=m.value + b" ") for m in plant.bus.read(*where)]

    receipts = Receipts(plant.books.engine, Other(), ReceiptKeys(plant.config.data_dir))
    with pytest.raises(NoReceipt, match="disagree"):
        receipts.signed(lease.account_id, usage.request_id)


def test_the_query_api_and_the_command(plant, settled, tmp_path, monkeypatch, capsys):
    lease, usage, failed = settled
    config = msgspec.structs.replace(
        plant.config,
        edge=msgspec.structs.replace(plant.config.edge, query_url="unix:q.sock"),
        meter=msgspec.structs.replace(plant.config.meter, query_socket="q.sock"),
    )
    keys = ReceiptKeys(config.data_dir)
    app = create_app(
        None,
        load_secret(config.data_dir),
        SystemClock(),
        receipts=Receipts(plant.books.engine, plant.bus, keys),
    )
    with _served(QueryServer(config, app)):
        client = QueryClient(config)
        document = client.get(f"/v1/receipts/{usage.request_id}", lease.account_id)
        listed = client.get("/v1/receipts/keys", lease.account_id)
        for account_id, request_id in (
            ("acct_other", usage.request_id),
            (lease.account_id, failed.request_id),
        ):
            with pytest.raises(QueryFailed) as refused:
                client.get(f"/v1/receipts/{request_id}", account_id)
            assert refused.value.status == 404
    file, key_file = tmp_path / "receipt.json", tmp_path / "published.json"
    file.write_text(json.dumps(document))
    key_file.write_text(json.dumps(listed))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["tollgate", *arguments, "--data-dir", config.data_dir])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return ended.value.code, out.out + out.err

    code, said = run("receipt", "verify", str(file), "--key", str(key_file))
    assert (code, f"genuine: request {usage.request_id}" in said) == (0, True), said
    assert run("receipt", "verify", str(file))[0] == 0
    document["receipt"]["charged_nano"] += 1
    file.write_text(json.dumps(document))
    code, said = run("receipt", "verify", str(file), "--key", str(key_file))
    assert (code, "not genuine" in said) == (1, True), said
    file.write_text("{")
    assert run("receipt", "verify", str(file))[0] == 1
    file.write_text("[" * 100_000)
    code, said = run("receipt", "verify", str(file))
    assert (code, "Traceback" in said) == (1, False)
    old = keys.signing().key_id
    assert run("receipt", "rotate")[0] == 0
    assert keys.signing().key_id != old
    assert old in run("receipt", "keys")[1]


@contextlib.contextmanager
def _served(server):
    stop = threading.Event()
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
