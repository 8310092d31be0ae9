"""Where blocking calls run: the hub of a worker never waits on SQL or a disk."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Threads(Protocol):
    """Runs a blocking call in a thread and waits for it without stopping the hub."""

    def apply(self, fn: Callable[..., T], args: tuple[Any, ...] = ()) -> T: ...
