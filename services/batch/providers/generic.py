"""Any HTTP provider with jobs, as a TOML file describes it (`description.py`)."""

import base64
import binascii
import math
from pathlib import Path
from typing import Any, Final

import msgspec

from services.batch.providers.calls import (
    ask,
    confirmed,
    input_url,
    look,
    not_offered,
    own_url,
    ppm,
    unreadable,
    url_of,
)
from services.batch.providers.description import (
    Call,
    Description,
    fill,
    fill_path,
    load,
    pointed,
)
from services.batch.providers.port import (
    Absent,
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
    Refused,
    Reply,
    Running,
    Submitted,
    Task,
    Traits,
    Unclear,
    Unsupported,
)
from services.core.catalog import Channel
from services.core.media import INPUTS

_MEDIA: Final = {  # of what a task of each kind makes
    "image": "image",
    "video": "video",
    "speech": "audio",
    "transcription": "text",
    "embedding": "json",
    "rerank": "json",
}


class Generic:
    """Raises BadDescription when it is made from a file that describes no provider."""

    def __init__(self, description: Path) -> None:
        self._is: Description = load(Path(description))
        self.name = self._is.name
        self.kinds = tuple(self._is.kinds)
        self.traits = Traits(
            poll_min_s=self._is.poll_min_s,
            poll_max_s=self._is.poll_max_s,
            create_s=self._is.create_s,
            idempotent=self._is.idempotent,
            max_age_s=self._is.max_age_s,
        )

    def headers(self, channel: Channel) -> dict[str, str]:
        values = {"credential": channel.credential}
        return {name: str(fill(text, values) or "") for name, text in self._is.auth.items()}

    def create(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        asks = self._is.create
        reply = ask(
            http,
            asks.method,
            url_of(channel, fill_path(asks.path, _ordered(order)).lstrip("/")),
            timeout_s=self.traits.create_s,
            **self._request(channel, asks, _ordered(order)),
        )
        if not isinstance(reply, Reply):
            if isinstance(reply, Refused) and any(t in reply.message for t in asks.moderated):
                return msgspec.structs.replace(reply, moderated=True)
            return reply
        told = reply.json()
        found = pointed(told, asks.id)
        links = {name: pointed(told, pointer) for name, pointer in asks.links.items()}
        kept = {name: own_url(channel, urls[0] if urls else "") for name, urls in links.items()}
        if not found or not isinstance(found[0], str | int) or not all(kept.values()):
            return Unclear(message=unreadable(reply))
        return Submitted(upstream_id=str(found[0]), links=kept)

    def poll(self, http: Http, channel: Channel, task: Task) -> PollAnswer:
        reply = self._look(http, channel, self._is.poll, _tasked(task))
        return self._verdict(channel, reply, task.kind) if isinstance(reply, Reply) else reply

    def cancel(self, http: Http, channel: Channel, task: Task) -> CancelAnswer:
        if self._is.cancel is None:
            return Unsupported()
        reply = self._look(http, channel, self._is.cancel, _tasked(task))
        if isinstance(reply, Later) and reply.status == 409:
            return confirmed(self.poll(http, channel, task))
        if not isinstance(reply, Reply):
            return not_offered(reply)
        if pointed(reply.json(), self._is.poll.state):
            return confirmed(self._verdict(channel, reply, task.kind))
        return confirmed(self.poll(http, channel, task))

    def find(self, http: Http, channel: Channel, order: Order) -> FindAnswer:
        asks = self._is.find
        if asks is None:
            return Unsupported()
        reply = self._look(http, channel, asks, _ordered(order))
        if not isinstance(reply, Reply):
            return reply if isinstance(reply, Later) else Absent()
        items = pointed(reply.json(), asks.items)
        if not items or not isinstance(items[0], list):
            return Later(message=unreadable(reply), status=reply.status)
        names = [name for item in items[0] for name in pointed(item, asks.id)]
        return Submitted(upstream_id=str(names[0])) if names else Absent()

    def _request(self, channel: Channel, asks: Call, values: dict[str, Any]) -> dict[str, Any]:
        given = {name: str(fill(text, values) or "") for name, text in asks.headers.items()}
        headers = {**given, **self.headers(channel)}
        return {"headers": headers, "json": fill(asks.body, values)}

    def _look(self, http: Http, channel: Channel, asks: Call, values: dict[str, Any]) -> Any:
        # A link that the create told stands for the whole URL; it was kept only if it is our own.
        path = str(fill(asks.path, values)) if asks.path.startswith("{links.") else ""
        url = path or url_of(channel, fill_path(asks.path, values).lstrip("/"))
        return look(http, asks.method, url, **self._request(channel, asks, values))

    def _verdict(self, channel: Channel, reply: Reply, kind: str) -> PollAnswer:
        asks, told = self._is.poll, reply.json()
        words = pointed(told, asks.state)
        if not words:
            return Later(message=unreadable(reply), status=reply.status)
        word = str(words[0])
        meaning = {name.lower(): what for name, what in asks.states.items()}.get(word.lower())
        if meaning == "done":
            return Done(outputs=self._outputs(channel, told, kind), told=self._units(told))
        if meaning in ("failed", "cancelled"):
            code = _first(told, asks.error_code)
            return Failed(
                code=code,
                message=_first(told, asks.error_text) or f"it ended as {word}",
                moderated=code in asks.moderated and bool(code),
                cancelled=meaning == "cancelled",
            )
        progress = pointed(told, asks.progress) if asks.progress else []
        done = progress[0] / asks.progress_full if progress and _is_number(progress[0]) else None
        unknown = "" if meaning is not None else word
        told = None if done is None else ppm(done)
        return Running(progress_ppm=told, started=meaning != "waiting", word=unknown)

    def _outputs(self, channel: Channel, told: Any, kind: str) -> tuple[Output, ...]:
        pointer = next((p for made, p in self._is.poll.outputs.items() if made == kind), None)
        values = pointed(told, pointer) if pointer else []
        found = [self._output(channel, _MEDIA[kind], value) for value in values]
        return tuple(output for output in found if output is not None)

    def _output(self, channel: Channel, media: str, value: Any) -> Output | None:
        if media == "json":
            return Output(kind=media, data=msgspec.json.encode(value))
        if not isinstance(value, str) or not value:
            return None
        if media == "text":
            return Output(kind=media, data=value.encode())
        if value.startswith(("https://", "http://")):
            own = self._is.poll.outputs_need_credential and bool(own_url(channel, value))
            return Output(kind=media, url=value, authorized=own)
        try:
            return Output(kind=media, data=base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            return None

    def _units(self, told: Any) -> dict[str, int]:
        found = {name: pointed(told, pointer) for name, pointer in self._is.poll.units.items()}
        return {name: int(v[0]) for name, v in found.items() if v and _is_number(v[0])}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _ordered(order: Order) -> dict[str, Any]:
    params = {name: value for name, value in order.params.items() if name not in INPUTS}
    return {
        "model": order.model,
        "kind": order.kind,
        "client_ref": order.client_ref,
        "params": params,
        "input": {name: input_url(order, name) for name in INPUTS},
    }


def _tasked(task: Task) -> dict[str, Any]:
    return {
        "model": task.model,
        "kind": task.kind,
        "client_ref": task.client_ref,
        "id": task.upstream_id,
        "links": task.links,
    }


def _first(told: Any, pointer: str) -> str:
    found = pointed(told, pointer) if pointer else []
    return str(found[0]) if found else ""
