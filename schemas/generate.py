"""Writes `schemas/json/*.json`: JSON Schema of every event kind, for consumers in any language.

Run `python -m schemas.generate` after a change of `schemas/events.py`."""

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas import events
from schemas.config import Config

FOLDER: Final = Path(__file__).parent / "json"
KINDS: Final = (
    events.Request,
    events.Usage,
    events.Error,
    events.LeaseClosed,
    events.IncarnationClosed,
    events.WalletMovement,
    events.Audit,
)


def documents() -> dict[str, str]:
    """File name -> JSON text: one schema per event kind, and one of the configuration file."""
    schemas: dict[str, type] = {
        f"event.{kind.__struct_config__.tag}.v{events.VERSION}": kind for kind in KINDS
    }
    schemas["config"] = Config
    return {f"{name}.json": _text(name, shape) for name, shape in schemas.items()}


def _text(name: str, shape: type) -> str:
    schema: dict[str, Any] = msgspec.json.schema(shape)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
    return json.dumps({**head, **schema}, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
