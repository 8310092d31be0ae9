"""Identifiers are unique, ordered by time and well formed."""

import os
import threading
import time
import uuid

from services.core.ids import new_id, uuid7_hex, uuid7_text


def test_is_a_canonical_uuid7_of_now():
    text = uuid7_text()
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert abs((parsed.int >> 80) - time.time() * 1000) < 5000


def test_later_milliseconds_sort_later():
    first = uuid7_text()
    time.sleep(0.003)
    assert first < uuid7_text()


def test_prefix_and_digits():
    prefix, _, digits = new_id("acct").partition("_")
    assert prefix == "acct"
    assert len(digits) == len(uuid7_hex()) == 32
    assert int(digits, 16)


def test_threads_never_share_one():
    made: list[list[str]] = [[] for _ in range(4)]

    def make(into: list[str]) -> None:
        into.extend(uuid7_text() for _ in range(5000))

    threads = [threading.Thread(target=make, args=(into,)) for into in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [text for into in made for text in into]
    assert len(set(everything)) == 20_000
    assert len({text[14:] for text in everything}) == 20_000  # not only the milliseconds differ


def test_a_forked_child_makes_others():
    uuid7_text()  # a batch is left over for the child to inherit
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, "".join(uuid7_text()[14:] for _ in range(300)).encode())
        os._exit(0)
    os.close(write)
    mine = {uuid7_text()[14:] for _ in range(300)}
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    theirs = {told[at : at + 22] for at in range(0, len(told), 22)}
    assert len(theirs) == 300
    assert not mine & theirs
