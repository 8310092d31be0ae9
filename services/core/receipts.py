"""Receipts: what one billed request was and cost, signed with Ed25519.

A document is `{"receipt": {...}, "signature": {"alg", "key_id", "value"}}`. The signature is over
the canonical JSON of `receipt`: keys sorted, no spaces, UTF-8, nothing escaped that need not be.
Whoever has the published keys verifies it without asking anybody.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from schemas.events import Usage
from services.core.moments import rfc3339
from services.core.money import exact_usd

ALGORITHM: Final = "Ed25519"
TYPE: Final = "tollgate.receipt"
VERSION: Final = 1


class NotGenuine(Exception):
    """The document is not what one of the keys signed; the message says why."""


class SigningKey:
    """One private key; `key_id` follows from its public half."""

    def __init__(self, private: bytes) -> None:
        """`private`: the 32 raw bytes. Raises ValueError."""
        self._key = Ed25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key_id = key_id_of(self.public)

    def sign(self, receipt: Mapping[str, Any]) -> dict[str, Any]:
        """The signed document."""
        value = self._key.sign(canonical(receipt))
        signature = {"alg": ALGORITHM, "key_id": self.key_id, "value": encoded(value)}
        return {"receipt": dict(receipt), "signature": signature}


def key_id_of(public: bytes) -> str:
    """`rk_` and 16 hex digits of the SHA-256 of the raw public key."""
    return "rk_" + hashlib.sha256(public).hexdigest()[:16]


def canonical(value: Any) -> bytes:
    """The one form of a JSON value of objects, lists, texts, integers, booleans and null."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def encoded(raw: bytes) -> str:
    """Base64, the URL-safe letters, without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    """Raises ValueError."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as ex:
        raise ValueError(f"not base64: {text[:40]!r}") from ex


def receipt_of(event: Usage) -> dict[str, Any]:
    """The content for a billed request: `charged_nano` is what the wallet paid."""
    return {
        "type": TYPE,
        "v": VERSION,
        "request_id": event.request_id,
        "account_id": event.account_id,
        "api_key_id": event.key_id,
        "time": rfc3339(event.occurred_at, 6),
        "dialect": event.dialect,
        "model_asked": event.model,
        "model_served": event.upstream_model or event.priced_as,
        "priced_as": event.priced_as,
        "group": event.group,
        "multiplier_ppm": event.multiplier_ppm,
        "tier": event.tier,
        "price_version": event.price_version,
        "usage": dict(event.usage),
        "estimated": event.estimated,
        "outcome": event.outcome.value,
        "charged_nano": event.charged_nano,
        "charged_usd": exact_usd(event.charged_nano),
    }


def verify(document: Any, keys: Mapping[str, bytes]) -> dict[str, Any]:
    """The receipt of a genuine document; `keys`: key_id -> raw public key. Raises NotGenuine."""
    if not isinstance(document, dict) or set(document) != {"receipt", "signature"}:
        raise NotGenuine("no receipt document: it has `receipt` and `signature`, nothing else")
    receipt, signature = document["receipt"], document["signature"]
    if not isinstance(receipt, dict) or not isinstance(signature, dict):
        raise NotGenuine("`receipt` and `signature` are objects")
    if receipt.get("type") != TYPE or receipt.get("v") != VERSION:
        raise NotGenuine("another type or version of receipt")
    if signature.get("alg") != ALGORITHM:
        raise NotGenuine(f"signed with {signature.get('alg')!r}, not {ALGORITHM}")
    public = keys.get(str(signature.get("key_id")))
    if public is None:
        raise NotGenuine(f"key {signature.get('key_id')!r} is none of the keys given")
    try:
        value = decoded(str(signature.get("value")))
        Ed25519PublicKey.from_public_bytes(public).verify(value, canonical(receipt))
    except (InvalidSignature, ValueError) as ex:
        raise NotGenuine("the signature does not fit the receipt") from ex
    return receipt


def published(document: Any) -> dict[str, bytes]:
    """The keys of what `GET /v1/receipts/keys` answers: key_id -> raw public key. Raises
    ValueError: also for a key whose id is not its own."""
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("no list of receipt keys")
    found: dict[str, bytes] = {}
    for entry in document["keys"]:
        public = decoded(str(entry.get("public_key"))) if isinstance(entry, dict) else b""
        if len(public) != 32 or entry.get("key_id") != key_id_of(public):
            raise ValueError("a key of the list is damaged")
        found[entry["key_id"]] = public
    return found
