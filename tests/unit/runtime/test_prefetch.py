"""Batches are prepared in a thread, in order, one ahead."""

from __future__ import annotations

import threading

import pytest

from harness.runtime.prefetch import Prefetcher


def test_items_come_in_order_and_each_is_made_while_the_one_before_is_used() -> None:
    made, used = [], []

    def make(number: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        made.append(number)
        return number * number

    with Prefetcher(make, 3, 8) as ahead:
        for number in range(3, 8):
            used.append(ahead.get())
            ahead.wait_until_idle()
            assert made == list(range(3, min(number + 2, 8))), "the next item, and no more"
    assert used == [9, 16, 25, 36, 49]


def test_the_time_that_the_caller_waits_is_measured() -> None:
    """With a clock of the test's own, which advances by 5 seconds with each item that is made."""
    now = [0.0]
    asked = threading.Event()

    def clock() -> float:
        asked.set()
        return now[0]

    def make(number: int) -> int:
        asked.wait(20)  # the first item is not made before the caller asks for it
        now[0] += 5
        return number

    with Prefetcher(make, 0, 4, clock) as ahead:
        ahead.get()
        assert ahead.waited_seconds == 5
        ahead.wait_until_idle()  # the second item is made by now
        ahead.get()
        assert ahead.waited_seconds == 0


def test_an_error_in_the_thread_is_raised_where_the_item_is_needed() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise KeyError("item 1")
        return number

    with Prefetcher(make, 0, 3) as ahead:
        assert ahead.get() == 0
        with pytest.raises(KeyError, match="item 1"):
            ahead.get()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
