"""Ctrl-C lets answers end, leaves nothing behind, and the next start has everything."""

import threading
import time

import psutil

from tests.parts.stack import Stack
from tests.parts.wire import PATHS, post


def test_streams_end_whole_and_the_next_start_has_their_bill(tmp_path):
    stack = Stack(tmp_path)
    try:
        stack.start()
        account = stack.new_account()
        key = stack.new_key("fault-slow-300", account=account)
        replies = [post(stack, dialect, key, stream=True) for dialect in PATHS]
        ours = psutil.Process(stack.pid).children(recursive=True)
        assert len(ours) >= 5
        codes: list[int] = []
        stopping = threading.Thread(target=lambda: codes.append(stack.stop_tollgate()))
        stopping.start()
        ends = [reply.body()[-60:] for reply in replies]
        stopping.join()
        assert [reply.whole for reply in replies] == [True] * 3
        assert b"message_stop" in ends[0]
        assert b"[DONE]" in ends[1]
        assert codes == [0]
        assert [p for p in ours if p.is_running()] == []

        began = time.monotonic()
        stack.start()
        took_s = time.monotonic() - began
        assert took_s < 20, took_s
        stack.wait_for_analytics()
        rows = stack.wait_for_rows(3, key)
        assert {row["outcome"] for row in rows} == {"completed"}
        assert all(row["cost_nano"] > 0 for row in rows)
        assert stack.reconcile().exit_code == 0
        assert post(stack, "chat", stack.new_key(account=account), stream=False).status == 200
    finally:
        stack.stop()
