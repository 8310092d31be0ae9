"""Files under tests/golden/events are add-only: what was once written stays readable for ever."""

import json
from pathlib import Path

import msgspec
import pytest

from schemas import events, generate

GOLDEN = Path(__file__).parent.parent / "golden" / "events"
FILES = sorted(GOLDEN.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_golden_event_is_read_and_written_unchanged(file):
    body = file.read_bytes()
    event = events.decode(body)
    written = msgspec.json.format(events.encode(event), indent=2) + b"\n"
    assert written == body


def test_every_kind_has_a_golden_file():
    tags = {f"{kind.__struct_config__.tag}.v{events.VERSION}" for kind in generate.KINDS}
    assert tags <= {file.stem for file in FILES}


@pytest.mark.parametrize("kind", generate.KINDS, ids=lambda kind: kind.__struct_config__.tag)
def test_a_golden_file_fills_every_field(kind):
    tag = kind.__struct_config__.tag
    body = json.loads((GOLDEN / f"{tag}.v{events.VERSION}.json").read_bytes())
    unused = {"request_id", "key_id", "lease_id", "lease_seq", "incarnation", "seq", "v"}
    assert set(kind.__struct_fields__) - unused <= set(body)


def test_the_golden_usage_obeys_the_rule_of_its_amounts():
    usage = events.decode((GOLDEN / "usage.v1.json").read_bytes())
    assert usage.cost_nano == usage.charged_nano + usage.written_off_nano


def test_an_unknown_field_is_ignored_and_an_unknown_kind_is_not():
    body = json.loads((GOLDEN / "audit.v1.json").read_bytes())
    assert events.decode(json.dumps({**body, "added_later": 1}).encode()).action == "key.revoke"
    with pytest.raises(msgspec.ValidationError, match="kind"):
        events.decode(json.dumps({**body, "kind": "unheard"}).encode())


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("charged_nano", -1),
        ("charged_nano", 1.5),
        ("charged_nano", True),
        ("usage", {"input": -1}),
        ("event_id", ""),
        ("cost_nano", 10**19),
        ("outcome", "maybe"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field(field, wrong):
    body = json.loads((GOLDEN / "usage.v1.json").read_bytes())
    with pytest.raises(msgspec.ValidationError, match=field):
        events.decode(json.dumps({**body, field: wrong}).encode())


def test_the_json_schemas_are_current():
    stored = {file.name: file.read_text("utf-8") for file in generate.FOLDER.glob("*.json")}
    assert stored == generate.documents(), "run: python -m schemas.generate"
