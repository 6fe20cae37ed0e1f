"""Queues and threads that stay native."""

from __future__ import annotations

import threading
import time

import pytest

from celery_canceltoken.native import Empty, NativeQueue, NativeThread, is_green
from tests.support.waiting import wait_until


def test_items_come_in_order() -> None:
    """What was put first is got first."""
    queue: NativeQueue[int] = NativeQueue()
    for number in range(3):
        queue.put(number)
    assert [queue.get(), queue.get(1.0), queue.get()] == [0, 1, 2]


@pytest.mark.parametrize("timeout", [0.0, -1.0, 1e-9, 0.001])
def test_a_timeout_that_is_over_at_once_is_no_reason_to_wait(timeout: float) -> None:
    """However short the timeout, an empty queue says so, again and again."""
    queue: NativeQueue[int] = NativeQueue()
    queue.put(1)
    assert queue.get(timeout) == 1
    began = time.monotonic()
    for _ in range(200):
        with pytest.raises(Empty):
            queue.get(timeout)
    assert time.monotonic() - began < 10


def test_a_put_ends_a_wait() -> None:
    """Who waits for an item is woken by it."""
    queue: NativeQueue[str] = NativeQueue()
    got: list[str] = []

    def get() -> None:
        while not got:
            try:
                got.append(queue.get(30.0))
            except Empty:
                continue

    thread = threading.Thread(target=get)
    thread.start()
    queue.put("mail")
    thread.join(10)
    assert got == ["mail"]


def test_no_item_of_many_threads_is_lost() -> None:
    """Whatever many threads put at once, one thread gets all of it."""
    queue: NativeQueue[int] = NativeQueue()
    threads = [
        threading.Thread(target=lambda first=first: [queue.put(first + n) for n in range(1000)])
        for first in range(0, 8000, 1000)
    ]
    for thread in threads:
        thread.start()
    got: set[int] = set()

    def all_there() -> bool:
        try:
            while True:
                got.add(queue.get(0.01))
        except Empty:
            return len(got) == 8000

    wait_until(all_there, description=lambda: f"all items are there, not {len(got)}")
    for thread in threads:
        thread.join(10)


def test_a_thread_can_be_waited_for() -> None:
    """`join` tells whether the thread has ended, as often as it is asked."""
    gate = threading.Event()
    thread = NativeThread(lambda: gate.wait(30) and None, name="canceltoken-test")
    assert not is_green()
    assert not thread.join(0.01)
    gate.set()
    assert thread.join(10)
    assert thread.join(10)
