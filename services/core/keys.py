"""API keys: how they are made, looked up and shown."""

import hashlib
import re
import secrets
from typing import Final

from services.core.errors import InvalidRequest

PREFIX: Final = "sk-toll-"
_CUSTOM: Final = re.compile(r"[A-Za-z0-9._~-]{16,256}")


def generate() -> str:
    """A new secret: `sk-toll-` and 43 URL-safe characters (256 random bits)."""
    return PREFIX + secrets.token_urlsafe(32)


def check_custom(secret: str) -> None:
    """A secret that its owner chose can be sent in a header and is not guessed by chance. Raises
    InvalidRequest."""
    if _CUSTOM.fullmatch(secret) is None:
        raise InvalidRequest(
            "custom_secret: 16 to 256 letters, digits, and any of - _ . ~", param="custom_secret"
        )


def sha256_hex(secret: str) -> str:
    """The lookup hash. The secret has 256 random bits, so a plain hash cannot be reversed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def masked(secret: str) -> str:
    """What may be shown and logged: `sk-toll-...****1234`."""
    return f"{PREFIX}...****{secret[-4:]}"
