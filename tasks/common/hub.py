"""Data sets on the Hugging Face Hub by name, resolved to a commit so that a run reads one revision and records it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from harness.errors import DataError, hub_errors

_HUB_NAME: Final = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-][\w./-]*))?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HUB_SECONDS: Final = 20.0  # timeout of the request to the hub; after it the local cache is searched


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A data set on the hub. revision: a branch, a tag or a commit; None for the newest version."""

    id: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """``id`` or ``id@revision``, as ``--data`` accepts it."""
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    def pinned(self) -> HubDataset:
        """The same data set at the commit to which its revision resolves now.

        A revision that is a commit is returned without a request. If the hub cannot be reached, the commit comes from
        the local cache.

        Raises: DataError if neither the hub nor the cache has the revision.
        """
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            commit = HfApi().dataset_info(self.id, revision=self.revision, timeout=_HUB_SECONDS).sha
        except GatedRepoError as error:
            raise DataError(
                f"{self.id} is a gated data set: accept its terms on the hub, then run `hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise DataError(
                f"{self.id}: no revision {self.revision!r} of this data set. Check the branch, tag or commit"
            ) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise DataError(
                f"{self.id}: there is no such local path and no such data set on the hub. Check the name; for a "
                "private data set, run `hf auth login`"
            ) from error
        except hub_errors() as error:
            commit = self._cached_commit(error)
        if commit is None:
            raise DataError(f"{self.id}: the hub returned no commit. Name one: --data {self.id}@COMMIT")
        return HubDataset(id=self.id, revision=commit)

    def _cached_commit(self, error: Exception) -> str:
        """The commit of the revision in the local cache; without a revision, of the only snapshot in the cache."""
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            repos = [r for r in scan_cache_dir().repos if (r.repo_type, r.repo_id) == ("dataset", self.id)]
        except CacheNotFound:
            repos = []
        by_ref = {ref: snapshot.commit_hash for repo in repos for ref, snapshot in repo.refs.items()}
        commits = sorted(snapshot.commit_hash for repo in repos for snapshot in repo.revisions)
        if (self.revision or "main") in by_ref:
            return by_ref[self.revision or "main"]
        if self.revision is None and len(commits) == 1:
            return commits[0]
        cached = f"The local cache has {', '.join(commits)}" if commits else "The local cache does not have it"
        raise DataError(
            f"{self.name}: there is no such local path, and the hub cannot be reached to resolve the revision "
            f"({type(error).__name__}: {error}). {cached}. Name a commit with --data {self.id}@COMMIT, or download the "
            "data and pass their path to --data"
        ) from error


def hub_dataset(source: str) -> HubDataset | None:
    """The data set named ``id`` or ``id@revision``; None if the text is not a valid name on the hub."""
    match = _HUB_NAME.fullmatch(source)
    return None if match is None else HubDataset(id=match["id"], revision=match["revision"])
