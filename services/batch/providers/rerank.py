"""Rerank in the shape that Cohere and Jina share: answered at once."""

from services.batch.providers.at_once import AtOnce
from services.batch.providers.calls import ask, at, bearer, unreadable, url_of
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


class Rerank(AtOnce):
    """`base_url` ends in `/v1` (Jina and most others) or `/v2` (Cohere)."""

    name = "rerank"
    kinds = ("rerank",)
    traits = Traits(create_s=120.0)

    def headers(self, channel: Channel) -> dict[str, str]:
        return bearer(channel)

    def create(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        asked = {**order.params, "model": order.model}
        url, timeout_s = url_of(channel, "rerank"), self.traits.create_s
        reply = ask(http, "POST", url, headers=bearer(channel), json=asked, timeout_s=timeout_s)
        if not isinstance(reply, Reply):
            return reply
        told = reply.json()
        results = at(told, "results")
        if not isinstance(results, list):
            return Unclear(message=unreadable(reply))
        if not results:
            return Done(outputs=())
        calls = at(told, "meta", "billed_units", "search_units")
        units = {"calls": calls} if isinstance(calls, int) else {}
        return Done(outputs=(Output(kind="json", data=reply.body),), told=units)
