"""URLs that an operator writes."""

from urllib.parse import SplitResult, urlsplit


def base_url(text: str) -> SplitResult:
    """`http(s)://host[:port][/path]`, split. Raises ValueError that says what is wrong with it."""
    if not text.lower().startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    if any(ord(c) <= 32 or ord(c) == 127 for c in text):
        raise ValueError("has a space or a control character")
    try:
        parts = urlsplit(text)
        _ = parts.port  # reads it
        host = (parts.hostname or "").encode("ascii" if text.isascii() else "idna")
    except ValueError as ex:
        raise ValueError(f"is no URL: {ex}") from ex
    if not host:
        raise ValueError("names no host")
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise ValueError("has more than scheme, host, port and path")
    if not parts.path.isascii():
        raise ValueError("has a path that is not ASCII")
    return parts
