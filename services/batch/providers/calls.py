"""What all adapters do the same way: headers, data URLs, and calls whose trouble is an answer."""

import base64
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from services.batch.providers.port import (
    CancelAnswer,
    Cancelled,
    Failed,
    Gone,
    Http,
    Later,
    NoReply,
    NotConnected,
    NotSent,
    Order,
    PollAnswer,
    Refused,
    Reply,
    Running,
    TooLate,
    Unclear,
    Unsupported,
    create_failed,
    poll_failed,
)
from services.core.catalog import Channel

_MESSAGE_MAX: Final = 500
_TYPES: Final = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)


def bearer(channel: Channel) -> dict[str, str]:
    return {"authorization": f"Bearer {channel.credential}"}


def url_of(channel: Channel, path: str) -> str:
    return f"{channel.base_url.rstrip('/')}/{path}"


def own_url(channel: Channel, url: object) -> str:
    """A URL from a reply if it is at the channel's own origin, the only one that may see the
    credential; empty for any other."""
    if not isinstance(url, str):
        return ""
    return url if urlsplit(url)[:2] == urlsplit(channel.base_url)[:2] else ""


def image_type(data: bytes) -> str:
    """The media type of an input image by its first bytes."""
    return next((kind for mark, kind in _TYPES if data.startswith(mark)), "image/png")


def input_url(order: Order, name: str) -> str:
    """An input as a URL: the bytes that we have as a data URL, else what the client named."""
    data = order.files.get(name)
    if data is not None:
        return f"data:{image_type(data)};base64,{base64.b64encode(data).decode()}"
    value = order.params.get(name, "")
    if isinstance(value, list):
        value = value[0] if value else ""
    return str(value)


def only_bytes(order: Order, *names: str) -> Refused | None:
    """The refusal of an input that came as a URL, for providers that take bytes alone."""
    for name in names:
        if order.params.get(name) and name not in order.files:
            message = f"{name}: this provider takes an upload or a data URL"
            return Refused(status=400, message=message, another=True)
    return None


def frame_size(params: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of a video by its resolution (720p unless told) and aspect ratio (16:9)."""
    short = int(str(params.get("resolution") or "720p").removesuffix("p"))
    across, down = map(int, str(params.get("aspect_ratio") or "16:9").split(":"))
    longer = short * max(across, down) // max(1, min(across, down)) // 2 * 2
    return (longer, short) if across >= down else (short, longer)


def ask(http: Http, method: str, url: str, **options: Any) -> Reply | NotSent | Unclear | Refused:
    """The 2xx reply to a create, or what became of it."""
    try:
        reply = http.call(method, url, **options)
    except NotConnected as ex:
        return NotSent(message=str(ex)[:_MESSAGE_MAX])
    except NoReply as ex:
        return Unclear(message=str(ex)[:_MESSAGE_MAX])
    return reply if reply.ok else create_failed(reply)


def look(http: Http, method: str, url: str, **options: Any) -> Reply | Gone | Later:
    """The 2xx reply to a poll, a cancel or a look-up, or what became of it."""
    try:
        reply = http.call(method, url, **options)
    except (NotConnected, NoReply) as ex:
        return Later(message=str(ex)[:_MESSAGE_MAX])
    return reply if reply.ok else poll_failed(reply)


def unreadable(reply: Reply) -> str:
    """Why a reply of the wrong shape was not understood."""
    return f"a reply that cannot be read: {reply.body[:200].decode('utf-8', 'replace')}"


def at(value: Any, *path: str | int) -> Any:
    """What lies at a path of names and indexes in decoded JSON; None where it ends early."""
    for step in path:
        if isinstance(step, str) and isinstance(value, dict):
            value = value.get(step)
        elif isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def ppm(done: float) -> int:
    """A share that an upstream told, in parts per million: it may have told anything."""
    return round(max(0.0, min(1.0, done)) * 1_000_000)


def confirmed(seen: PollAnswer) -> CancelAnswer:
    """What a cancel that was accepted has come to, by a look at the generation behind it. One that
    runs on is not stopped: who accepted it may still charge for it."""
    if isinstance(seen, Failed):
        return Cancelled() if seen.cancelled else TooLate()
    if isinstance(seen, Later):
        return seen
    return Unsupported() if isinstance(seen, Running) else TooLate()


def not_offered(reply: Gone | Later) -> CancelAnswer:
    """A cancel that failed: later, unless the provider has no such call."""
    if isinstance(reply, Gone):
        return TooLate()
    return Unsupported() if reply.status in (405, 501) else reply
