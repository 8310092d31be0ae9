"""Names that people give: of accounts, keys, members."""

import re
from typing import Final

from services.core.errors import InvalidRequest

_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,128}")  # one line everywhere


def check_name(name: str) -> None:
    """Raises InvalidRequest."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "name: 1 to 128 characters, none of them a control character", param="name"
        )
