"""The shape of a request body: how much text it holds, how many pictures and files."""

from collections.abc import Iterable
from typing import Any, Final

from services.core.dialects.base import BodyShape
from services.core.dialects.reading import child, json_value, text_of

IMAGE_TYPES: Final = frozenset({"image", "image_url", "input_image", "image_generation_call"})
FILE_TYPES: Final = frozenset({"document", "file", "input_file", "input_audio"})


def body_shape(
    body: bytes,
    content: bytes,
    markers: Iterable[bytes],
    *,
    cache_write_1h: bool,
    server_tools: bool,
    stored_input: bool = False,
) -> BodyShape:
    """The shape of `body`. `content` is the JSON text that may hold media; it is parsed only when
    one of `markers` (quoted type names, which text cannot contain unescaped) occurs in it."""
    images = documents = encoded = 0
    if any(content.rfind(marker) >= 0 for marker in markers):  # half the time of `in`
        images, documents, encoded = _count_media(content)
    return BodyShape(
        text_bytes=max(len(body) - encoded, 0),
        images=images,
        documents=documents,
        cache_write_1h=cache_write_1h,
        server_tools=server_tools,
        stored_input=stored_input,
    )


def _count_media(content: bytes) -> tuple[int, int, int]:
    """Images, documents, and the bytes of base64 in them."""
    images = documents = encoded = 0
    try:
        stack: list[Any] = [json_value(content)]
    except (ValueError, RecursionError):
        return 0, 0, 0  # the upstream refuses it; every byte counts as text until then
    while stack:
        value = stack.pop()
        if type(value) is list:
            stack.extend(value)
        elif type(value) is dict:
            kind = text_of(value, "type")
            if kind in IMAGE_TYPES:
                images += 1
                encoded += _encoded_bytes(value)
            elif kind in FILE_TYPES:
                documents += 1
                encoded += _encoded_bytes(value)
            # A source names its own kind (`file`), but may hold whole blocks.
            source = child(value, "source")
            stack.extend(part for name, part in value.items() if name != "source")
            stack.append(source.get("content"))
    return images, documents, encoded


def _encoded_bytes(part: dict[str, Any]) -> int:
    """Bytes of base64 in one image or file part of any dialect."""
    source = child(part, "source")
    if source.get("type") == "base64":
        return len(text_of(source, "data"))
    if part.get("type") == "image_generation_call":
        return len(text_of(part, "result"))
    url = text_of(child(part, "image_url"), "url") or text_of(part, "image_url")
    if url.startswith("data:"):
        return len(url)
    file_data = text_of(child(part, "file"), "file_data") or text_of(part, "file_data")
    return len(file_data or text_of(child(part, "input_audio"), "data"))
