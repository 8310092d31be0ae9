"""Embeddings in OpenAI's shape: answered at once. Vectors come as numbers, from whatever speaks
that shape, and leave as the client asked for them."""

import base64
import sys
from array import array
from typing import Any

import msgspec

from services.batch.providers.at_once import AtOnce
from services.batch.providers.calls import ask, at, bearer, unreadable, url_of
from services.batch.providers.openai import refused
from services.batch.providers.port import (
    CreateAnswer,
    Done,
    Http,
    Order,
    Output,
    Reply,
    Traits,
    Unclear,
)
from services.core.catalog import Channel


class OpenAIEmbeddings(AtOnce):
    """`base_url` ends in `/v1`."""

    name = "openai-embeddings"
    kinds = ("embedding",)
    traits = Traits(create_s=120.0)

    def headers(self, channel: Channel) -> dict[str, str]:
        return bearer(channel)

    def create(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        asked = {**order.params, "model": order.model, "encoding_format": "float"}
        url, timeout_s = url_of(channel, "embeddings"), self.traits.create_s
        reply = ask(http, "POST", url, headers=bearer(channel), json=asked, timeout_s=timeout_s)
        if not isinstance(reply, Reply):
            return refused(reply)
        told: Any = reply.json()
        data, spent = at(told, "data"), at(told, "usage", "prompt_tokens")
        if not isinstance(data, list) or not isinstance(spent, int):
            return Unclear(message=unreadable(reply))
        if len(data) < len(order.params["input"]):
            return Done(outputs=())
        body = reply.body
        if order.params.get("encoding_format") == "base64":
            try:
                entries = [each | {"embedding": _packed(each["embedding"])} for each in data]
            except (KeyError, TypeError, OverflowError):
                return Unclear(message=unreadable(reply))
            body = msgspec.json.encode(told | {"data": entries})
        return Done(outputs=(Output(kind="json", data=body),), told={"input": spent})


def _packed(vector: list[float]) -> str:
    """Base64 of its numbers as 32-bit floats, the lowest byte first."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
