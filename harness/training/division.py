"""The division of a step: into shares of processes, and of each share into micro-batches that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from harness.config.spec import TrainConfig
from harness.errors import TrainingError
from harness.models.loading import LoadedModel
from harness.runtime.distributed import SINGLE_PROCESS, ProcessGroup, partition_by_length
from harness.runtime.memory import is_out_of_memory
from harness.training.batch import Batch, Weighted
from harness.training.packing import Layout, micro_tokens

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Sequences, and the batch that they make, on the model's device.

    is_filling: it adds nothing to losses and gradients. A rank with fewer micro-batches than another one takes part in
        the passes of a sharded base model with it.
    """

    sequences: Sequence[Weighted]
    batch: Batch
    is_filling: bool = False


@dataclass(frozen=True, kw_only=True)
class StepBatches:
    """The micro-batches of one process's share of a step.

    micro_tokens: the size that they were made for; the step makes others if memory has run out since.
    """

    batches: Sequence[MicroBatch]
    micro_tokens: int


class StepDivision:
    """Divides the sequences of steps.

    micro_tokens: the maximum number of tokens of a micro-batch; halved when the device runs out of memory.
    """

    def __init__(
        self, loaded: LoadedModel, config: TrainConfig, layout: Layout, processes: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.loaded, self.layout, self.processes = loaded, layout, processes
        self.micro_tokens = micro_tokens(config, loaded.device)

    def share_of(self, weighted: Sequence[Weighted]) -> list[Weighted]:
        """The sequences of this process."""
        parts = partition_by_length([len(w.sequence) for w in weighted], self.processes.world_size)
        return [weighted[i] for i in parts[self.processes.rank]]

    def split(self, mine: Sequence[Weighted]) -> list[list[int]]:
        """The positions of the sequences of each micro-batch."""
        return self.layout.split([len(w.sequence) for w in mine], self.micro_tokens)

    def collate(self, sequences: Sequence[Weighted]) -> Batch:
        """The batch of the sequences of one micro-batch."""
        return self.layout.collate(sequences, self.loaded)

    def of_step(self, weighted: Sequence[Weighted]) -> StepBatches:
        """The micro-batches of this process's share of a step. It can be called ahead, from another thread.

        With a sharded base model every process has the same number of them, some of them filling.
        """
        made = self.batches(self.share_of(weighted))
        if self.loaded.sharding is None:
            return made
        lengths = [len(w.sequence) for w in weighted]
        shares = partition_by_length(lengths, self.processes.world_size)
        most = max(len(self.layout.split([lengths[i] for i in share], made.micro_tokens)) for share in shares)
        missing = most - len(made.batches)
        return replace(made, batches=[*made.batches, *[self._filling(weighted)] * missing]) if missing else made

    def _filling(self, weighted: Sequence[Weighted]) -> MicroBatch:
        """The shortest sequence of the step. Another rank trains on it, so no parameter is used by the filling alone.

        A parameter that no sequence of the step uses has no gradient, and stays as it is.
        """
        shortest = min(weighted, key=lambda w: (len(w.sequence), w.position))
        return MicroBatch(sequences=[shortest], batch=self.collate([shortest]), is_filling=True)

    def batches(self, mine: Sequence[Weighted]) -> StepBatches:
        """The micro-batches of some sequences of this process. It can be called ahead, from another thread."""
        size, parts = self.micro_tokens, [[mine[i] for i in positions] for positions in self.split(mine)]
        made = [MicroBatch(sequences=part, batch=self.collate(part)) for part in parts]
        return StepBatches(batches=made, micro_tokens=size)

    def within_memory(self, mine: Sequence[Weighted], attempt: Callable[[], T]) -> T:
        """The result of a function that works on micro-batches, which are halved if memory runs out.

        Raises: TrainingError if one sequence is too long, or if the base model is sharded: the other processes wait
            inside a pass for this one, and cannot begin the step again.
        """
        while True:
            try:
                return attempt()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.loaded.sharding is not None:
                    raise TrainingError(
                        f"out of memory with train.shard_base=true and micro-batches of {self.micro_tokens} tokens: "
                        f"set train.micro_tokens={max(16, self.micro_tokens // 2)}, or "
                        "train.gradient_checkpointing=true. The run continues from its last checkpoint"
                    ) from error
                # The error holds on to the tensors of the failed pass, so that memory is freed after it.
            self._halve([len(w.sequence) for w in mine])

    def _halve(self, lengths: Sequence[int]) -> None:
        used = max(sum(lengths[i] for i in part) for part in self.layout.split(lengths, self.micro_tokens))
        longest = max(lengths)
        if used <= longest:
            raise TrainingError(
                f"out of memory with a single sequence of {longest} tokens: set a smaller train.max_length, "
                "train.gradient_checkpointing=true, or use a smaller model"
            )
        self.micro_tokens = max(longest, min(self.micro_tokens, used) // 2)
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
