"""What training tasks together does to each of them, against the same tasks trained alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.groups import Group, difference
from harness.stats import Estimate
from harness.verdict import points


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """gains: multi-task minus single-task headline by task, for the tasks where both have one; mean: of the means."""

    gains: Mapping[str, Estimate]
    mean: Estimate | None

    @property
    def losing(self) -> tuple[str, ...]:
        """The tasks that are worse off together (the seesaw), the worst first."""
        return tuple(sorted((t for t, g in self.gains.items() if g.value < 0), key=lambda t: self.gains[t].value))

    @property
    def losing_shown(self) -> tuple[str, ...]:
        """Those whose interval is below 0."""
        return tuple(t for t in self.losing if self.gains[t].high < 0)


def transfer(together: Group, alone: Group, tasks: Sequence[str]) -> Transfer:
    """The gains of a multi-task method over the method that trains each task alone."""
    found = {task: difference(together, alone, task) for task in tasks}
    return Transfer(
        gains={task: gain for task, gain in found.items() if gain is not None},
        mean=difference(together, alone, None),
    )


def transfer_in_words(together: str, alone: str, found: Transfer) -> str:
    """``cgc_lora against lora_single: mean +1.2 (0.3 to 2.0); 3 of 16 tasks lose (1 shown), the worst MedDG -2.0``."""
    mean = f"mean {points(found.mean)}; " if found.mean is not None else ""
    lose = f"{len(found.losing)} of {len(found.gains)} tasks lose ({len(found.losing_shown)} shown)"
    worst = f", the worst {found.losing[0]} {points(found.gains[found.losing[0]])}" if found.losing else ""
    return f"{together} against {alone}: {mean}{lose}{worst}"
