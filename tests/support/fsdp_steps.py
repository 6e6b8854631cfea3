"""Steps of a toy in float64 with a sharded and a whole base, for torchrun: tests/support/fsdp_steps.py OUT.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from ddp_steps import TASKS, balancing, make_rows
from torch import Tensor

from harness.balancing import BalancedStage
from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.errors import HarnessError
from harness.method import Trait
from harness.models.loading import LoadedModel
from harness.models.sharding import shard_base
from harness.registry import method_class
from harness.runtime.distributed import ProcessGroup, join
from harness.runtime.lockstep import Place
from harness.runtime.signals import Interrupted
from harness.testing.toys import perturb, toy_model
from harness.training.attention import checkpoint_activations
from harness.training.optimiser import trained_parameters
from harness.training.packing import Layout, choose_layout
from harness.training.step import Stage, StepRunner
from methods import moa

STEPS = 4  # the last has one sequence, so that rank 1 has none
METHODS = ("lora_all", "cgc_lora", "moa")
# method, packed, gradient checkpointing, balancer
CASES = [
    *((name, packed, again, None) for name, packed, again in product(METHODS, (True, False), (False, True))),
    ("lora_all", True, False, "famo"),
    ("mixlora", True, True, None),
]


def name_of(case: tuple[str, bool, bool, str | None]) -> str:
    """A readable key for a case."""
    name, packed, again, balancer = case
    words = [name, "packed" if packed else "padded", "checkpointed" if again else "", balancer or ""]
    return " ".join(filter(None, words))


def loaded_toy(processes: ProcessGroup | None) -> LoadedModel:
    """The toy model, sharded over the processes; None leaves it whole."""
    model, device = toy_model(), torch.device("cpu")
    return LoadedModel(
        model=model,
        tokenizer=None,
        device=device,
        dtype=torch.float64,
        n_parameters=0,
        max_context=128,
        encoder_decoder=False,
        sharding=None if processes is None else shard_base(model, "toy", device, processes),
    )


def run(case: tuple[str, bool, bool, str | None], processes: ProcessGroup, shard: bool) -> dict[str, Any]:
    """Loss, norm and task losses of each step, and the weights after the last."""
    name, packed, again, balancer = case
    method = method_class(name)()
    loaded = loaded_toy(processes if shard else None)
    adapter = method.attach(loaded.model, TASKS, seed=0)
    perturb(adapter)
    trained = trained_parameters(adapter, method)
    subject = BalancedStage(name="all", tasks=TASKS, epoch=2, seed=0)
    reads = Trait.LABEL_FREE in method.traits
    stage = Stage(
        name="all",
        steps=STEPS,
        key=(0,),
        reads=reads,
        trained=trained,
        balance=None if balancer is None else balancing(balancer).weights(subject, lambda examples: []),
    )
    config = TrainConfig(loss="task", micro_tokens=40, lr=1e-3, shard_base=shard)
    layout = choose_layout(loaded, adapter, config, reads) if packed else Layout(packed=False)
    loop = StepRunner(loaded, adapter, config, stage, layout, processes)
    if again:
        checkpoint_activations(loaded.model, True)
    loaded.model.train()
    results = [loop.step(step, make_rows(step), Routes(TASKS)) for step in range(STEPS)]
    local = sum(p.to_local().numel() for p in loaded.model.parameters() if hasattr(p, "to_local"))
    return {
        "packed": layout.packed,
        "sharded": local,
        "micro_batches": [_counts(loop, make_rows(step), processes) for step in range(STEPS)],
        "losses": [r.loss for r in results],
        "norms": [r.grad_norm for r in results],
        "tasks": [dict(r.by_task) for r in results],
        "weights": {n: p.detach().flatten().tolist() for n, p in stage.parameters.items()},
    }


def _counts(loop: StepRunner, rows: Sequence[Encoded], processes: ProcessGroup) -> list[list[int]]:
    """Of each rank, its micro-batches that are filling, and all of them."""
    made = loop.ahead(rows, Routes(TASKS))
    counted = [0, 0] if made is None else [sum(m.is_filling for m in made.batches), len(made.batches)]
    return processes.gather(counted)


def passes(loaded: LoadedModel, n: int) -> list[float]:
    """The sum of the logits of n passes without gradients, each over other tokens."""
    with torch.no_grad():
        return [float(loaded.model(input_ids=torch.full((1, 3), 5 + i)).logits.sum()) for i in range(n)]


def uneven(processes: ProcessGroup) -> dict[str, Any]:
    """What each rank gets where ranks make different passes, or one of them ends with an error."""
    whole, found = loaded_toy(None), {}
    loaded = loaded_toy(processes)

    def attempt(work: Callable[[], object]) -> list[Any]:
        try:
            return processes.gather(work())
        except HarnessError as error:
            return processes.gather(f"{type(error).__name__}: {error}")

    def share() -> bool:
        with loaded.together():
            mine = passes(loaded, 5 if processes.is_main else 0)
        return mine == passes(whole, len(mine))

    def fail(error: Exception) -> None:
        with loaded.together():
            if not processes.is_main:
                raise error
            passes(loaded, 3)

    def differ() -> None:
        assert loaded.sharding is not None
        with torch.enable_grad():
            if processes.is_main:
                _logits(loaded).sum()
            else:
                loaded.sharding.lockstep.meet(Place.BACKWARD)

    found["passes of one rank"] = attempt(share)
    found["error"] = attempt(lambda: fail(HarnessError("no space left")))
    loaded = loaded_toy(processes)
    found["signal"] = attempt(lambda: fail(Interrupted(15)))
    loaded = loaded_toy(processes)
    found["gradients"] = attempt(differ)
    return found


def _logits(loaded: LoadedModel) -> Tensor:
    logits: Tensor = loaded.model(input_ids=torch.tensor([[1, 2]])).logits
    return logits


def main(arguments: Sequence[str]) -> None:
    """Write what every case gives in both ways, from rank 0."""
    torch.set_num_threads(1)
    moa.PASS_TOKENS = 24  # Ranks read their prompts in different numbers of passes.
    processes = join()
    found: dict[str, Any] = {
        name_of(case): {way: run(case, processes, shard) for way, shard in (("whole", False), ("sharded", True))}
        for case in CASES
    }
    found["uneven"] = uneven(processes)
    if processes.is_main:
        Path(arguments[0]).write_text(json.dumps(found))
    processes.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
