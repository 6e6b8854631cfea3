"""A hub that holds one data set, without a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


class Hub:
    """Stands in for the hub's answer to which commit a data set has.

    commit: the newest. requests: the (id, revision) that the hub was asked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commit = "1" * 40
        self.requests: list[tuple[str, str | None]] = []
        self.down: Exception | None = None
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", self._dataset_info)

    def move(self, commit: str = "2" * 40) -> None:
        """The data set gets a new version."""
        self.commit = commit

    def _dataset_info(self, repo_id: str, *, revision: str | None = None, **_: Any) -> SimpleNamespace:
        self.requests.append((repo_id, revision))
        if self.down is not None:
            raise self.down
        return SimpleNamespace(sha=self.commit)
