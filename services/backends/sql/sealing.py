"""Secrets at rest: encrypted with a key that is derived from the data folder's secret."""

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class WrongSecret(Exception):
    """The database was written with another `secret.key`."""


class Sealer:
    """Fernet over a key of its own, so that the data folder's secret signs and seals apart."""

    def __init__(self, secret_key: bytes) -> None:
        derived = HKDF(SHA256(), length=32, salt=None, info=b"tollgate catalog").derive(secret_key)
        self._fernet = Fernet(base64.urlsafe_b64encode(derived))

    def seal(self, clear: str) -> str:
        """Text that only `unseal` with the same secret key reads; another one at each call."""
        return self._fernet.encrypt(clear.encode()).decode()

    def unseal(self, sealed: str) -> str:
        """The clear text. Raises WrongSecret."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken as ex:
            raise WrongSecret("the database was sealed with another secret.key") from ex
