"""A task has one route, its place among the tasks of its adapter."""

from __future__ import annotations

import pytest

from harness.data.routes import Routes
from harness.errors import HarnessError


def test_a_route_is_the_place_of_its_task() -> None:
    routes = Routes(("sort", "add"))
    assert [routes.index(task) for task in ("add", "sort")] == [1, 0]
    assert [routes.name(routes.index(task)) for task in routes.tasks] == ["sort", "add"]
    assert len(routes) == 2


def test_a_task_without_a_route_is_named() -> None:
    with pytest.raises(HarnessError, match=r"no route for task 'copy'.*sort, add"):
        Routes(("sort", "add")).index("copy")


def test_a_task_has_one_route_only() -> None:
    with pytest.raises(HarnessError, match="listed twice"):
        Routes(("sort", "add", "sort"))
