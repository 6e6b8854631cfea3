"""Plain LoRA against PEFT's, and a LoRA per task against LoRA on one task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import BudgetError, UsageError
from harness.method import Budget, Ranks
from harness.testing.toys import TASKS, ToyTrainer, perturb, toy_data, toy_model
from methods.c_poly import CPoly
from methods.cgc_lora import CGCLoRA
from methods.lora_all import LoRAAll
from methods.lora_single import LoRASingle
from methods.lorahub import LoRAHub
from methods.moa import MoA
from methods.moe_lora import MoELoRA

pytestmark = pytest.mark.numeric


def trainer(method: Any, tasks: Any = TASKS, data: Any = None, **options: Any) -> ToyTrainer:
    model = toy_model()
    adapter = method.attach(model, list(tasks), seed=0)
    return ToyTrainer(method=method, adapter=adapter, model=model, data=data or toy_data(tasks=tasks), **options)


def fitted(method: Any, tasks: Any = TASKS, data: Any = None, **options: Any) -> ToyTrainer:
    found = trainer(method, tasks, data, **options)
    method.fit(found.adapter, found, list(tasks))
    return found


def test_lora_all_is_peft_s_lora_over_steps_of_adam() -> None:
    from peft import LoraConfig, get_peft_model

    ours, theirs = toy_model(), toy_model()
    adapter = LoRAAll(rank=4, alpha=8).attach(ours, ["t"], seed=0)
    perturb(adapter)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peft: Any = get_peft_model(
        theirs, LoraConfig(r=4, lora_alpha=8, target_modules=names), autocast_adapter_dtype=False
    )
    state = peft.state_dict()
    mine = dict(adapter.trainable())
    for name, parameter in mine.items():
        module, _, factor = name.rpartition(".")
        state[f"base_model.model.{module}.lora_{factor}.default.weight"].copy_(parameter.detach())
    trained = [p for p in peft.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in mine.values())
    optimisers = [torch.optim.AdamW(list(mine.values()), lr=1e-2), torch.optim.AdamW(trained, lr=1e-2)]
    tokens = torch.randint(0, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        with adapter.route(torch.zeros(3, dtype=torch.long)):
            one = ours(input_ids=tokens, labels=tokens, use_cache=False).loss
            one.backward()
        other = peft(input_ids=tokens, labels=tokens, use_cache=False).loss
        other.backward()
        assert one.item() == pytest.approx(other.item(), abs=1e-6)
        grads = dict(peft.named_parameters())
        for name, parameter in mine.items():
            module, _, factor = name.rpartition(".")
            twin = grads[f"base_model.model.{module}.lora_{factor}.default.weight"].grad
            assert (parameter.grad - twin).abs().max() < 1e-5, name
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()


def test_a_task_s_lora_is_lora_all_on_that_task_bit_for_bit() -> None:
    single = fitted(LoRASingle(rank=4))
    for task in TASKS:
        # A third of the rows, so a third of the batch.
        alone = fitted(LoRAAll(rank=4), [task], {task: toy_data()[task]}, batch_size=2)
        for name, value in alone.adapter.state_dict().items():
            assert torch.equal(single.adapter.state_dict()[f"{name}.{task}"], value), name
    assert single.finished == list(TASKS)


def test_what_another_run_has_trained_is_reused() -> None:
    first = fitted(LoRASingle(rank=4))
    state = first.adapter.state_dict()
    again = trainer(LoRASingle(rank=4), reusable={TASKS[1]: state})
    again.train = lambda stage, **_: again.finish(stage)  # type: ignore[method-assign]
    start = again.adapter.state_dict()
    again.method.fit(again.adapter, again, list(TASKS))
    for name, value in again.adapter.state_dict().items():
        own = name.endswith(f".{TASKS[1]}")
        assert torch.equal(value, state[name] if own else start[name]), name
    broken = trainer(LoRASingle(rank=4), reusable={TASKS[1]: {}})
    with pytest.raises(ValueError, match=r"missing model\.layers\.0.*A\.second"):
        broken.method.fit(broken.adapter, broken, list(TASKS))


def test_a_task_without_examples_keeps_its_start_and_the_others_train() -> None:
    data = {**toy_data(), TASKS[2]: []}
    found = fitted(LoRASingle(rank=4), data=data)
    assert found.finished == list(TASKS[:2])
    for name, parameter in found.adapter.trainable().items():
        if ".B." in name:
            assert bool(parameter.any()) is not name.endswith(TASKS[2]), name


def test_training_one_task_makes_no_gradient_for_another() -> None:
    found = trainer(LoRASingle(rank=4))
    with found.adapter.route(torch.tensor([1, 1])):
        found.model(input_ids=torch.ones(2, 3, dtype=torch.long)).logits.sum().backward()
    for name, parameter in found.adapter.trainable().items():
        assert (parameter.grad is not None) is name.endswith(f".{TASKS[1]}"), name


def test_ranks_of_sixteen_tasks_are_what_the_papers_count() -> None:
    counted: dict[Any, Ranks] = {
        LoRAAll(): Ranks(stored=16, active=16),
        LoRASingle(): Ranks(stored=256, active=16),
        CGCLoRA(): Ranks(stored=46, active=16),
        CGCLoRA(layout="common"): Ranks(stored=16, active=16),
        CGCLoRA(layout="wide"): Ranks(stored=46, active=46),
        MoELoRA(): Ranks(stored=16, active=16),
        CPoly(): Ranks(stored=304, active=16),
        CPoly(rank=2, merge="output"): Ranks(stored=38, active=38),
        CPoly(rank=2, merge="output", variant="simple"): Ranks(stored=38, active=8),
        LoRAHub(): Ranks(stored=256, active=16),
        LoRAHub(merge="output"): Ranks(stored=256, active=256),
        MoA(): Ranks(stored=256, active=16),
        MoA(soft=True): Ranks(stored=256, active=256),
    }
    for method, ranks in counted.items():
        assert method.ranks(16) == ranks, method


@pytest.mark.parametrize(
    ("method", "budget", "n_tasks", "ranks"),
    [
        (LoRAAll(), "active:20", 3, Ranks(stored=20, active=20)),
        (LoRASingle(), "stored:16", 3, Ranks(stored=15, active=5)),
        (CGCLoRA(), "active:16", 16, Ranks(stored=46, active=16)),
        (CGCLoRA(), "active:30", 2, Ranks(stored=27, active=24)),
        (CGCLoRA(n_common=0), "active:16", 3, Ranks(stored=48, active=16)),
        (CGCLoRA(n_specific=0), "active:16", 3, Ranks(stored=14, active=14)),
        (CGCLoRA(), "stored:46", 16, Ranks(stored=46, active=16)),
        (MoELoRA(), "active:31", 3, Ranks(stored=24, active=24)),
        (CPoly(), "stored:64", 3, Ranks(stored=60, active=10)),
        (MoA(), "active:8", 3, Ranks(stored=24, active=8)),
    ],
)
def test_a_budget_is_used_as_far_as_it_goes(method: Any, budget: str, n_tasks: int, ranks: Ranks) -> None:
    kind, rank = budget.split(":")
    assert method.within(Budget(kind=kind, rank=int(rank)), n_tasks).ranks(n_tasks) == ranks


def test_an_impossible_budget_names_the_least_possible() -> None:
    with pytest.raises(
        BudgetError, match=r"CGCLoRA needs at least stored:23 with 16 tasks, and the budget is stored:16"
    ):
        CGCLoRA().within(Budget(kind="stored", rank=16), 16)
    with pytest.raises(BudgetError, match="at least active:8"):
        MoELoRA().within(Budget(kind="active", rank=7), 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CGCLoRA(gate="embeding"), "unknown method.gate 'embeding'. Did you mean 'embedding'"),
        (lambda: CGCLoRA(n_common=0, n_specific=0), "a task needs at least 1 expert"),
        (lambda: MoELoRA(rank=10), "method.rank=10 is not a multiple of method.n_experts=8"),
        (lambda: CPoly(n_splits=2, merge="output"), "needs method.merge=factor"),
        (lambda: CPoly(variant="poly", n_splits=5).attach(toy_model(), ["a"], seed=0), r"does not divide .*q_proj"),
        (lambda: MoA(routing="first"), "unknown method.routing 'first'"),
        (lambda: LoRAHub(merge="sum"), "unknown method.merge 'sum'"),
    ],
)
def test_fields_that_make_no_sense_are_refused_in_words(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_free_logits_learn_at_a_rate_of_their_own() -> None:
    method = CGCLoRA(gate="logits", gate_lr=3.0)
    names = method.attach(toy_model(), list(TASKS), seed=0).trainable()
    factors = {name: method.lr_factor(name) for name in names}
    assert {f for n, f in factors.items() if n.endswith("logits")} == {3.0}
    assert {f for n, f in factors.items() if not n.endswith("logits")} == {1.0}


@pytest.mark.parametrize("method", [CGCLoRA(), MoELoRA(), CPoly()])
def test_reports_show_weights_by_layer_and_task(method: Any) -> None:
    found = fitted(method)
    (gates,) = found.artefacts.values()
    assert set(gates) == (
        {"gate"} if isinstance(method, MoELoRA) else {f"{n}.gate" for n in found.adapter.fold(TASKS[0])}
    )
    for by_task in gates.values():
        assert list(by_task) == list(TASKS)
        if not isinstance(method, CPoly):
            assert all(sum(w) == pytest.approx(1, abs=1e-4) and len(w) == 8 for w in by_task.values())


def logits(found: ToyTrainer, label: int) -> Tensor:
    with found.adapter.route(torch.tensor([label])):
        result: Tensor = found.model(input_ids=torch.arange(1, 9)[None]).logits.detach()
    return result


@pytest.mark.long
@pytest.mark.parametrize("cls", [CGCLoRA, MoELoRA, CPoly], ids=lambda cls: cls.__name__)
def test_every_ablation_trains_to_another_model(cls: Any) -> None:
    whole = fitted(cls())
    for name, changes in cls.ablations.items():
        assert (logits(fitted(cls(**changes)), 0) - logits(whole, 0)).abs().max() > 1e-5, name
