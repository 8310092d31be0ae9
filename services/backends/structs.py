"""The descriptions by which msgspec decodes structs, made before a process begins threads.

msgspec makes the description of a struct at its first decoding and shares it before it is filled:
a second thread that decodes the same struct meanwhile ends the process with a segmentation fault
(seen with msgspec 0.22.0)."""

from collections.abc import Iterator

import msgspec


def describe_all() -> None:
    """From now on any thread may decode the structs of the modules that were imported so far."""
    for struct in [msgspec.Struct, *_below(msgspec.Struct)]:
        msgspec.json.Decoder(struct)


def _below(struct: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for each in struct.__subclasses__():
        yield each
        yield from _below(each)
