"""Bodies of OpenAI's routes that take files: multipart, whose files become inputs of the job, or
JSON, which names them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import falcon

from services.backends.sql.uploads import JOB_INPUT, Upload
from services.batch.resources.base import Service, decode, read_body
from services.batch.resources.files import keep, parts_of, receive
from services.core.errors import InvalidRequest

_TEXT_MAX: Final = 256 * 1024
_WHOLE: Final = ("n", "seed", "output_compression")
_DECIMAL: Final = ("temperature", "speed")


class Form:
    """`fields` by name, files as the ids of their uploads, `[]` behind a name left out and what
    comes under it several times joined by commas; `digests`:
    SHA-256 by upload id."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.digests: dict[str, str] = {}


@contextmanager
def received(service: Service, req: falcon.Request, *files: str) -> Iterator[Form]:
    """The request's form; its uploads are let go when the block raises. `files` are the names
    under which files may come, each once. Raises Refusal."""
    form = Form()
    if not (req.content_type or "").startswith("multipart/form-data"):
        form.fields = decode(read_body(req), dict[str, Any])
        yield form
        return
    account_id = service.caller(req).account_id
    try:
        for part in parts_of(req):
            name = str(part.name or "").removesuffix("[]")
            if part.filename is None:
                value = _value(name, _text(part, name))
                more = part.name != name and name in form.fields  # one of a list
                form.fields[name] = f"{form.fields[name]},{value}" if more else value
            elif name not in files:
                raise InvalidRequest(f"{name}: no file belongs here", param=name)
            elif name in form.fields:
                raise InvalidRequest(f"{name}: one file at a time can be taken", param=name)
            else:
                made = _kept(service, account_id, part)
                form.fields[name] = made.id
                form.digests[made.id] = made.sha256
        yield form
    except BaseException:
        drop(service, account_id, form)
        raise


def drop(service: Service, account_id: str, form: Form) -> None:
    """Lets the uploads of a form go that no job needs."""
    for upload_id in form.digests:
        service.parts.uploads.delete(account_id, upload_id)


def _kept(service: Service, account_id: str, part: Any) -> Upload:
    draft = receive(service, part)
    return keep(service, account_id, str(part.filename or "file"), JOB_INPUT, draft)


def _text(part: Any, name: str) -> str:
    data: bytes = part.stream.read(_TEXT_MAX + 1)
    if len(data) > _TEXT_MAX:
        raise InvalidRequest(f"{name}: longer than {_TEXT_MAX} bytes", param=name)
    try:
        return data.decode()
    except UnicodeDecodeError as ex:
        raise InvalidRequest(f"{name}: not UTF-8", param=name) from ex


def _value(name: str, text: str) -> Any:
    """A field as JSON would have it; what is no number stays text and is refused by its check."""
    try:
        if name in _WHOLE:
            return int(text)
        return float(text) if name in _DECIMAL else text
    except ValueError:
        return text
