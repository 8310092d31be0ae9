"""The operator's credential for the management API: `admin.key` in the data folder.

It is no key of a customer: it pays for nothing and opens no inference route."""

import hmac
import os
import secrets
from pathlib import Path
from typing import Final

from services.backends.settings import ConfigError

_FILE: Final = "admin.key"
_PREFIX: Final = "sk-toll-admin-"


class AdminKey:
    """Read at every use, so that a new one counts at once for every worker of the folder."""

    def __init__(self, data_dir: Path | str) -> None:
        self._path = Path(data_dir) / _FILE

    def secret(self) -> str:
        """The key in clear text, made (mode 0600) when there is none. Raises ConfigError."""
        try:
            return self._path.read_text("ascii").strip()
        except FileNotFoundError:
            return self._make(keep=True)
        except (OSError, UnicodeDecodeError) as ex:
            raise ConfigError(f"cannot read {self._path}: {ex}") from ex

    def rotate(self) -> str:
        """A new key; the old one is none from now on. Raises ConfigError."""
        return self._make(keep=False)

    def matches(self, offered: str) -> bool:
        """Whether `offered` is the key. Raises ConfigError."""
        if not offered.startswith(_PREFIX):
            return False
        return hmac.compare_digest(offered.encode("utf-8", "replace"), self.secret().encode())

    def _make(self, *, keep: bool) -> str:
        secret = _PREFIX + secrets.token_urlsafe(32)
        fresh = self._path.with_name(f"{_FILE}.{secrets.token_hex(4)}.new")
        try:
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secret + "\n")
                file.flush()
                os.fsync(file.fileno())
            if not keep:
                fresh.replace(self._path)
                return secret
            try:
                os.link(fresh, self._path)
            except FileExistsError:  # another process was first: its key counts
                return self._path.read_text("ascii").strip()
            finally:
                fresh.unlink()
        except OSError as ex:
            raise ConfigError(f"cannot write {self._path}: {ex}") from ex
        return secret
