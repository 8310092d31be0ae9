"""multipart/form-data (RFC 7578), as far as clients of the media APIs send it."""

import re
from typing import Final, NamedTuple

_BOUNDARY: Final = re.compile(r'boundary="?([^";,]+)"?')
_NAME: Final = re.compile(rb'[; ]name="([^"]*)"')
_FILE: Final = re.compile(rb'[; ]filename="([^"]*)"')


class Form(NamedTuple):
    """`files` holds every file of a name in order; names lose a trailing `[]`."""

    fields: dict[str, str]
    files: dict[str, list[bytes]]


def parse(content_type: str, body: bytes) -> Form | None:
    """None when the body is not multipart."""
    boundary = _BOUNDARY.search(content_type)
    if not content_type.startswith("multipart/form-data") or boundary is None:
        return None
    form = Form({}, {})
    mark = b"--" + boundary.group(1).encode()
    for part in (b"\r\n" + body).split(b"\r\n" + mark)[1:]:
        head, found, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not found or name is None:
            continue
        key = name.group(1).decode("utf-8", "replace").removesuffix("[]")
        if _FILE.search(head):
            form.files.setdefault(key, []).append(data)
        else:
            form.fields[key] = data.decode("utf-8", "replace")
    return form
