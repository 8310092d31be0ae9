"""API keys: how they are made, looked up and shown."""

import hashlib
import secrets
from typing import Final

PREFIX: Final = "sk-toll-"


def generate() -> str:
    """A new secret: `sk-toll-` and 43 URL-safe characters (256 random bits)."""
    return PREFIX + secrets.token_urlsafe(32)


def sha256_hex(secret: str) -> str:
    """The lookup hash. The secret has 256 random bits, so a plain hash cannot be reversed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def masked(secret: str) -> str:
    """What may be shown and logged: `sk-toll-...****1234`."""
    return f"{PREFIX}...****{secret[-4:]}"
