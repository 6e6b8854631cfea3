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


def test_an_item_is_made_before_it_is_asked_for() -> None:
    ready = [threading.Event(), threading.Event()]

    def make(number: int) -> int:
        ready[number].set()
        return number

    with Prefetcher(make, 0, 2) as ahead:
        assert ready[0].wait(20)
        ahead.get()
        assert ready[1].wait(20)


def test_the_time_that_the_caller_waited_is_measured() -> None:
    release = threading.Event()

    def make(number: int) -> int:
        release.wait(20)
        return number

    with Prefetcher(make, 0, 1) as ahead:
        threading.Timer(0.05, release.set).start()
        ahead.get()
        assert ahead.waited_seconds > 0


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
