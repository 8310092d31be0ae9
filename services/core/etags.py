"""Entity tags (RFC 9110, section 8.8.3)."""


def names(header: str | None, etag: str) -> bool:
    """Whether `If-None-Match` has `etag`, which a proxy may have made weak; `*` stands for any."""
    given = [each.strip().removeprefix("W/") for each in (header or "").split(",")]
    return etag in given or "*" in given
