"""What Veo and Imagen share: the Gemini API and Vertex, told apart by the channel's base URL."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

from services.batch.providers.calls import at, bearer, image_type
from services.batch.providers.port import Order, Output
from services.core.catalog import Channel

_VERTEX: Final = "/publishers/"


def on_vertex(channel: Channel) -> bool:
    """`.../v1/projects/P/locations/L/publishers/google` instead of `.../v1beta`."""
    return _VERTEX in channel.base_url


def headers(channel: Channel) -> dict[str, str]:
    if on_vertex(channel):
        return bearer(channel)
    return {"x-goog-api-key": channel.credential}


def parameters(params: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Ours that are given, under Google's names."""
    return {theirs: params[ours] for ours, theirs in names.items() if ours in params}


def given_image(order: Order, name: str) -> dict[str, Any]:
    """An input image as Google takes it; empty without one."""
    data = order.files.get(name)
    if data is None:
        return {}
    encoded = base64.b64encode(data).decode()
    return {"image": {"bytesBase64Encoded": encoded, "mimeType": image_type(data)}}


def inline(entry: Any, kind: str) -> Output | None:
    """An output whose bytes are in the reply; None when there are none that can be read."""
    text = at(entry, "bytesBase64Encoded")
    if not isinstance(text, str):
        return None
    try:
        return Output(kind=kind, data=base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return None
