"""OpenAI videos, and the many gateways that speak their shape. No cancel (DELETE erases what is
finished), no client reference; the bytes need the key."""

from typing import Any, Final
from urllib.parse import quote

from services.batch.providers.calls import (
    ask,
    at,
    bearer,
    frame_size,
    image_type,
    look,
    only_bytes,
    ppm,
    unreadable,
    url_of,
)
from services.batch.providers.openai import MODERATED, refused
from services.batch.providers.port import (
    CancelAnswer,
    CreateAnswer,
    Done,
    Failed,
    FindAnswer,
    Http,
    Later,
    Order,
    Output,
    PollAnswer,
    Reply,
    Running,
    Submitted,
    Task,
    Traits,
    Unclear,
    Unsupported,
)
from services.core.catalog import Channel

_WAITING: Final = ("queued", "pending")
_RUNNING: Final = ("in_progress", "processing", "running")


class OpenAIVideos:
    """`base_url` ends in `/v1`."""

    name = "openai-videos"
    kinds = ("video",)
    traits = Traits(poll_min_s=2.0, poll_max_s=15.0, takes_urls=False)

    def headers(self, channel: Channel) -> dict[str, str]:
        return bearer(channel)

    def create(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        if problem := only_bytes(order, "image_init"):
            return problem
        width, height = frame_size(order.params)
        asked = {
            "model": order.model,
            "prompt": str(order.params["prompt"]),
            "seconds": str(order.params["duration_seconds"]),
            "size": f"{width}x{height}",
        }
        given = order.files.get("image_init")
        body: dict[str, Any] = {"json": asked}
        if given is not None:
            kind = image_type(given)
            body = {"form": asked, "files": {"input_reference": (f"first.{kind[6:]}", given, kind)}}
        url, timeout_s = url_of(channel, "videos"), self.traits.create_s
        reply = ask(http, "POST", url, headers=bearer(channel), timeout_s=timeout_s, **body)
        if not isinstance(reply, Reply):
            return refused(reply)
        found = at(reply.json(), "id")
        if not isinstance(found, str) or not found:
            return Unclear(message=unreadable(reply))
        return Submitted(upstream_id=found)

    def poll(self, http: Http, channel: Channel, task: Task) -> PollAnswer:
        one = url_of(channel, f"videos/{quote(task.upstream_id, safe='')}")
        reply = look(http, "GET", one, headers=bearer(channel))
        if not isinstance(reply, Reply):
            return reply
        told = reply.json()
        word = str(at(told, "status") or "").lower()
        if not word:
            return Later(message=unreadable(reply), status=reply.status)
        if word == "completed":
            output = Output(kind="video", url=one + "/content", authorized=True)
            return Done(outputs=(output,), told=_seconds(told))
        if word in ("failed", "cancelled", "expired"):
            code = str(at(told, "error", "code") or word)
            return Failed(
                code=code,
                message=str(at(told, "error", "message") or "the video failed"),
                moderated=code in MODERATED,
                cancelled=word == "cancelled",
            )
        percent = at(told, "progress")
        return Running(
            progress_ppm=ppm(percent / 100) if isinstance(percent, int) else None,
            started=word not in _WAITING,
            word="" if word in _WAITING + _RUNNING else word,
        )

    def cancel(self, http: Http, channel: Channel, task: Task) -> CancelAnswer:
        return Unsupported()

    def find(self, http: Http, channel: Channel, order: Order) -> FindAnswer:
        return Unsupported()


def _seconds(told: Any) -> dict[str, int]:
    text = str(at(told, "seconds") or "")
    return {"seconds": int(text)} if text.isdecimal() else {}
