"""Variables of torchrun that another program has left in the environment."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.runtime.distributed import SINGLE_PROCESS, join

COMPLETE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"WORLD_SIZE": "4"},
            "WORLD_SIZE=4, but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. For one process: unset",
        ),
        ({**COMPLETE, "MASTER_ADDR": ""}, "WORLD_SIZE=2, but not MASTER_ADDR. For one process: unset WORLD_SIZE"),
        ({**COMPLETE, "WORLD_SIZE": "two"}, "WORLD_SIZE=two, which is not a number of processes"),
    ],
    ids=["world size alone", "no address", "no number"],
)
def test_left_over_variables_are_wrong_use_and_say_what_to_unset(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in COMPLETE:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words):
        join()


def test_a_rank_without_a_number_of_processes_means_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")
    assert join() is SINGLE_PROCESS
