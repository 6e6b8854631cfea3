"""The route of a task: its index in an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import HarnessError


@dataclass(frozen=True)
class Routes:
    """The tasks of an adapter; a task's position among them is its route.

    Everything that routes examples gets the route from here. ``tasks`` are those that ``Method.attach`` was given, in
    that order.
    """

    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.tasks)) < len(self.tasks):
            raise HarnessError(f"a task is listed twice, so that it has two routes: {', '.join(self.tasks)}")

    def __len__(self) -> int:
        return len(self.tasks)

    def index(self, task: str) -> int:
        """The route of a task. Raises: HarnessError for a task that the adapter was not attached for."""
        try:
            return self.tasks.index(task)
        except ValueError:
            raise HarnessError(
                f"the adapter has no route for task {task!r}, only for {', '.join(self.tasks)}"
            ) from None

    def name(self, index: int) -> str:
        """The task of a route."""
        return self.tasks[index]


@dataclass(frozen=True)
class FixedRoute(Routes):
    """Every task uses the weights of one task, ``owner``."""

    owner: str

    def index(self, task: str) -> int:
        return super().index(self.owner)
