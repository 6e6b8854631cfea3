"""A base model whose blocks are divided over the ranks (``train.shard_base``), by PyTorch's FSDP2.

Each rank keeps 1/n of the weights of every block. A pass gathers the weights of one block at a time, uses them and
frees them; the backward pass gathers them again. What stands outside the blocks (embeddings, the last norm, the output
head) is whole on every rank: at its peak a pass would need all of it anyway. Adapters are put on the model later and
are whole on every rank too, so that their gradients, optimiser and checkpoints are those of an unsharded model.

Zhao et al., PyTorch FSDP, arXiv:2304.11277; Rajbhandari et al., ZeRO, arXiv:1910.02054 (stage 3, of frozen weights).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import ModelError
from harness.models.quantised import weight_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from harness.runtime.distributed import ProcessGroup
    from harness.runtime.lockstep import Lockstep


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a model is divided.

    n_ranks: the number of ranks that have a part of each block. lockstep: keeps their passes in step.
    gathered_bytes: of the blocks that a rank has whole at the same time, the one in use and the next one.
    """

    n_ranks: int
    lockstep: Lockstep
    gathered_bytes: int


def shard_base(model: Any, label: str, device: torch.device, processes: ProcessGroup) -> Sharding:
    """Divide a frozen causal model over the ranks, and move what this rank keeps to its device.

    Args:
        model: on the CPU, without an adapter; it is changed in place. Only one block at a time is on the device whole.
        label: of the model, for errors.
        processes: at least two ranks, all of which call this with equal models.

    Raises: ModelError for a model that cannot be divided.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from harness.runtime.lockstep import Lockstep

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise ModelError(
            "train.shard_base=true needs a newer PyTorch, whose fully_shard has ignored_params: upgrade it"
        )
    blocks, body = _blocks(model, label), model.base_model
    gathered = 2 * max(map(weight_bytes, blocks))
    mesh = init_device_mesh(device.type, (processes.world_size,))
    inside = {id(p) for block in blocks for p in block.parameters()}
    sharded: list[Any] = [fully_shard(block, mesh=mesh, reshard_after_forward=True) for block in blocks]
    # The model has no weights of its own to shard. As the root of the blocks it lets them overlap their exchanges. (Not
    # the body: transformers gives no hidden states of one whose class it does not know.)
    root: Any = fully_shard(model, mesh=mesh, ignored_params={p for p in model.parameters() if id(p) not in inside})
    for before, block in zip([root, *sharded], sharded, strict=False):
        # By default FSDP prefetches the block that ran before, which may be one of an earlier pass: ranks with other
        # numbers of passes would gather other blocks. The root stands for nothing to prefetch.
        block.set_modules_to_backward_prefetch([before])
    model.to(device)

    def empty_pass() -> None:
        for block in sharded:
            block.unshard()
            block.reshard()

    lockstep = Lockstep(processes, empty_pass)
    # Hooks on the body, since some methods call it without the output head.
    body.register_forward_pre_hook(lambda *_: lockstep.begin_pass(), prepend=True)
    body.register_forward_hook(lambda *_: lockstep.end_pass())
    _check_order(model, sharded, label, device)
    return Sharding(n_ranks=processes.world_size, lockstep=lockstep, gathered_bytes=gathered)


def _blocks(model: Any, label: str) -> list[nn.Module]:
    """The blocks of the largest stack of the model. Raises: ModelError."""
    from torch import nn

    config = model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{label} is an encoder-decoder, and train.shard_base=true is for causal models: leave it out, or choose "
            "another --model"
        )
    for name, value in config.to_dict().items():
        if name.endswith("layerdrop") and value:
            raise ModelError(
                f"{label} leaves out blocks at random in training ({name}={value} in its config.json), which "
                "train.shard_base=true does not support: leave it out, or choose another --model"
            )
    stacks = [
        module
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and not any(part.isdecimal() for part in name.split("."))
    ]
    largest = max(stacks, key=_n_weights, default=None)
    if largest is None or not _n_weights(largest) or len(set(map(id, largest))) < len(largest):
        raise ModelError(
            f"{label} has no stack of blocks that train.shard_base=true could divide: leave it out, or choose another "
            "--model"
        )
    return list(largest)


def _n_weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _check_order(model: Any, blocks: Sequence[nn.Module], label: str, device: torch.device) -> None:
    """Raises: ModelError if a pass does not use each block once, in order, as an empty pass does."""
    import torch

    with _called(blocks) as called, torch.no_grad():
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
    if called != list(range(len(blocks))):
        raise ModelError(
            f"{label} does not use each of its {len(blocks)} blocks once and in order, which train.shard_base=true "
            "needs: leave it out, or choose another --model"
        )


@contextmanager
def _called(blocks: Sequence[nn.Module]) -> Iterator[list[int]]:
    """While open, the positions of the blocks as they are called."""
    called: list[int] = []
    hooks = [block.register_forward_pre_hook(lambda *_, i=i: called.append(i)) for i, block in enumerate(blocks)]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()
