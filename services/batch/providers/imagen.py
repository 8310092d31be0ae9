"""Google Imagen: answered at once. Fewer images than asked for means that some were filtered."""

from typing import Final

from services.batch.providers import google
from services.batch.providers.at_once import AtOnce
from services.batch.providers.calls import ask, at, unreadable, url_of
from services.batch.providers.port import CreateAnswer, Done, Http, Order, Reply, Traits, Unclear
from services.core.catalog import Channel

_NAMES: Final = {
    "n": "sampleCount",
    "aspect_ratio": "aspectRatio",
    "negative_prompt": "negativePrompt",
    "seed": "seed",
}


class Imagen(AtOnce):
    """`base_url` ends in `/v1beta`, or in `/publishers/google` on Vertex."""

    name = "imagen"
    kinds = ("image",)
    traits = Traits(create_s=300.0)

    def headers(self, channel: Channel) -> dict[str, str]:
        return google.headers(channel)

    def create(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        asked = google.parameters(order.params, _NAMES)
        asked.setdefault("sampleCount", 1)
        asked["includeRaiReason"] = True
        body = {"instances": [{"prompt": order.params["prompt"]}], "parameters": asked}
        reply = ask(
            http,
            "POST",
            url_of(channel, f"models/{order.model}:predict"),
            headers=google.headers(channel),
            json=body,
            timeout_s=self.traits.create_s,
        )
        if not isinstance(reply, Reply):
            return reply
        told = reply.json()
        predictions = at(told, "predictions")
        if not isinstance(told, dict) or not isinstance(predictions or [], list):
            return Unclear(message=unreadable(reply))
        found = [google.inline(entry, "image") for entry in predictions or []]
        outputs = tuple(output for output in found if output is not None)
        return Done(outputs=outputs, filtered=not outputs)
