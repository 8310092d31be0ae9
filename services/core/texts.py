"""Texts that others wrote, on an operator's terminal."""


def one_line(text: str) -> str:
    """`text` with a replacement character for each that is not printable: nobody moves the cursor
    or makes up a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
