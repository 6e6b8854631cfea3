"""MoA's routers: what they read, what they learn, how they choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.errors import ModelError, NotFoldable, UsageError
from harness.task import Example
from harness.testing.toys import TASKS, ToyTrainer, perturb, toy_model, toy_tokens
from methods.moa import MoA, MoAAdapter

pytestmark = pytest.mark.numeric

PROMPTS = [torch.tensor(ids) for ids in ([5, 6, 7], [8, 9], [3, 4, 1, 2, 9], [7])]
WORDS = ("apples and pears", "rain tomorrow", "left, then right")


def attached(method: MoA | None = None, noise: bool = True) -> tuple[Any, MoAAdapter]:
    model: Any = toy_model()
    adapter = (method or MoA(rank=2)).attach(model, list(TASKS), seed=0)
    if noise:
        perturb(adapter)
    assert isinstance(adapter, MoAAdapter)
    return model, adapter


def scores_by_hand(adapter: MoAAdapter, prompt: Tensor, pooling: str = "mean") -> Tensor:
    """(L, T) from the bare base model, one prompt at a time."""
    states = toy_model()(input_ids=prompt[None], output_hidden_states=True).hidden_states[:-1]
    rows = []
    for state, weight in zip(states, adapter.routers.weight, strict=True):
        pooled = state[0].mean(0) if pooling == "mean" else state[0, -1]
        normal = (pooled - pooled.mean()) / (pooled.var(unbiased=False) + 1e-5).sqrt()
        rows.append(weight @ normal)
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("training", [False, True])
def test_routers_read_the_base_whatever_the_loras_do(pooling: str, training: bool) -> None:
    model, adapter = attached(MoA(rank=2, pooling=pooling))
    model.train(training)
    with adapter.route(torch.tensor([0, 1, 2, 0])):
        adapter.read(PROMPTS, torch.arange(4))
        scores = adapter.prompt_scores.scores
    assert scores is not None
    for i, prompt in enumerate(PROMPTS):
        assert (scores[:, i] - scores_by_hand(adapter, prompt, pooling)).abs().max() < 1e-6
    assert model.training is training


def test_the_penalty_is_the_cross_entropy_of_the_labels_and_reaches_the_routers_alone() -> None:
    _, adapter = attached(MoA(rank=2, eta=0.3))
    labels = torch.tensor([2, 0, 1, 0])
    with adapter.route(labels):
        adapter.read(PROMPTS, torch.arange(4))
        penalty = adapter.penalty()
        penalty.backward()  # type: ignore[no-untyped-call]
    by_hand = sum(
        nn.functional.cross_entropy(scores_by_hand(adapter, p), label.repeat(2), reduction="mean")
        for p, label in zip(PROMPTS, labels, strict=True)
    )
    assert penalty.item() == pytest.approx(0.3 * float(by_hand), abs=1e-6)
    reached = [n for n, p in adapter.trainable().items() if p.grad is not None]
    assert reached == ["routers.weight"]
    with adapter.route(labels):
        assert adapter.penalty() == 0, "nothing was read in this route"


def test_packed_tokens_name_the_prompt_that_they_belong_to() -> None:
    _, adapter = attached(MoA(rank=2))
    owner = torch.tensor([[0, 0, 1, 1, -1], [2, 3, 3, -1, -1]])
    labels = torch.tensor([[2, 2, 0, 0, 0], [1, 0, 0, 2, 2]])  # padding has a label too, and no prompt
    with adapter.route(labels):
        adapter.read(PROMPTS, owner)
        packed = adapter.penalty()
    with adapter.route(torch.tensor([2, 0, 1, 0])):
        adapter.read(PROMPTS, torch.arange(4))
        assert adapter.penalty().item() == pytest.approx(packed.item(), abs=1e-6)


def test_the_last_router_decides_or_all_but_the_first_vote() -> None:
    _, adapter = attached(MoA(rank=2))
    scores = torch.stack([scores_by_hand(adapter, p) for p in PROMPTS], 1)
    assert adapter.assign(PROMPTS) == scores[-1].argmax(-1).tolist()
    table = torch.zeros(4, 1, 3)  # blocks, prompts, tasks
    table[0, 0, 0] = 9
    table[1, 0, 1] = 1
    table[2, 0, 1] = 1
    table[3, 0, 2] = 9
    for routing, expected in (("last", [2]), ("vote", [1])):
        adapter.method = replace(adapter.method, routing=routing)
        adapter.routers.forward = lambda pooled: table  # type: ignore[method-assign]
        assert adapter.assign(PROMPTS[:1]) == expected
    adapter.method = replace(adapter.method, routing="label")
    assert adapter.assign(PROMPTS) is None


def test_long_lists_of_prompts_are_read_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    _, adapter = attached()
    together = adapter.pooled(PROMPTS)
    monkeypatch.setattr("methods.moa.PASS_TOKENS", 5)
    assert (adapter.pooled(PROMPTS) - together).abs().max() < 1e-6


def readable(n: int = 6) -> dict[str, list[Example]]:
    """Tasks whose prompts tell them apart."""
    return {
        task: [Example(id=f"{task}{i}", task=task, prompt=f"{words} {i}", target=str(t)) for i in range(n)]
        for t, (task, words) in enumerate(zip(TASKS, WORDS, strict=True))
    }


def test_routers_learn_to_name_the_domain_of_unseen_prompts() -> None:
    method = MoA(rank=2, eta=1.0, routing="vote")
    model, adapter = attached(method, noise=False)
    trainer = ToyTrainer(method=method, adapter=adapter, model=model, data=readable(), steps=30, lr=3e-2)
    method.fit(adapter, trainer, list(TASKS))
    asked = [torch.tensor(toy_tokens(f"{words} {i}")) for i in (7, 8) for words in WORDS]
    for routing in ("vote", "last"):
        adapter.method = replace(method, routing=routing)
        assert adapter.assign(asked) == [0, 1, 2, 0, 1, 2]


def test_stage_one_trains_loras_and_reads_nothing() -> None:
    method = MoA(rank=2, stage1_share=1.0)
    model, adapter = attached(method, noise=False)
    start = adapter.state_dict()
    adapter.pooled = None  # type: ignore[assignment, method-assign]
    trainer = ToyTrainer(method=method, adapter=adapter, model=model, data=readable())
    trainer.finished.append("together")
    method.fit(adapter, trainer, list(TASKS))
    changed = {n for n, v in adapter.state_dict().items() if not torch.equal(v, start[n])}
    assert changed == {n for n in start if n != "routers.weight"}


def test_the_run_s_steps_are_shared_between_the_stages() -> None:
    method = MoA(rank=2, stage1_share=0.25)
    _, adapter = attached(method, noise=False)
    shares: dict[str, float] = {}

    class Counting(ToyTrainer):
        def train(self, stage: str, parameters: Any = None, tasks: Any = None, share: float = 1.0) -> None:
            shares[stage] = share

    trainer = Counting(method=method, adapter=adapter, model=toy_model(), data=readable())
    method.fit(adapter, trainer, list(TASKS))
    assert shares == {**{f"alone-{task}": 0.25 for task in TASKS}, "together": 0.75}
    shares.clear()
    MoA(stage1_share=0.0).fit(adapter, trainer, list(TASKS))
    assert shares == {"together": 1.0}


def test_a_classifier_leaves_the_loras_of_stage_one_as_they_are() -> None:
    method = MoA(rank=2, joint=False)
    model, adapter = attached(method, noise=False)
    seen: dict[str, dict[str, Tensor]] = {}

    class Watching(ToyTrainer):
        def finish(self, stage: str) -> None:
            super().finish(stage)
            seen[stage] = self.adapter.state_dict()

    method.fit(adapter, Watching(method=method, adapter=adapter, model=model, data=readable()), list(TASKS))
    before, after = seen[TASKS[-1]], seen["together"]
    assert [n for n in after if not torch.equal(before[n], after[n])] == ["routers.weight"]


def test_the_classification_loss_reaches_the_loras_of_the_labels_only_if_asked() -> None:
    for grad in ("none", "adapter"):
        _, adapter = attached(MoA(rank=2, router_input="adapted", router_grad=grad))
        with adapter.route(torch.tensor([2, 0, 2, 0])):
            adapter.read(PROMPTS, torch.arange(4))
            adapter.penalty().backward()
        reached = {n for n, p in adapter.trainable().items() if p.grad is not None and bool(p.grad.any())}
        if grad == "none":
            assert reached == {"routers.weight"}
            continue
        own = {task for task in TASKS if any(name.endswith(f".{task}") for name in reached)}
        assert own == {TASKS[0], TASKS[2]}
        name = next(n for n in sorted(reached) if n.endswith(f"B.{TASKS[2]}"))
        parameter = adapter.trainable()[name]
        index = tuple(int(i) for i in (parameter.grad.abs() == parameter.grad.abs().max()).nonzero()[0])
        assert parameter.grad[index].item() == pytest.approx(slope(adapter, parameter, index), rel=1e-4)


def slope(adapter: Any, parameter: Any, index: tuple[int, ...], step: float = 1e-4) -> float:
    """The derivative of the penalty by one value, from two differences."""
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[index] += sign * step
        with adapter.route(torch.tensor([2, 0, 2, 0])):
            adapter.read(PROMPTS, torch.arange(4))
            values.append(float(adapter.penalty()))
        with torch.no_grad():
            parameter[index] -= sign * step
    return (values[0] - values[1]) / (2 * step)


def test_without_stage_two_training_ends_after_stage_one_and_can_be_reused() -> None:
    method = MoA(rank=2, **MoA.ablations["stage1"])
    model, adapter = attached(method, noise=False)
    trainer = ToyTrainer(method=method, adapter=adapter, model=model, data=readable())
    method.fit(adapter, trainer, list(TASKS))
    assert trainer.finished == [f"alone-{task}" for task in TASKS]
    assert adapter.assign(PROMPTS) is None
    assert [method.stage_key(stage, TASKS) for stage in method.kept_stages(TASKS)] == [
        MoA(rank=2).stage_key(f"alone-{task}", TASKS) for task in TASKS
    ]
    assert MoA(rank=2).kept_stages(TASKS) == []


def test_adapted_states_are_those_of_the_label_s_lora_and_choices_need_none() -> None:
    _, adapter = attached(MoA(rank=2, router_input="adapted"))
    labels = torch.tensor([2, 0, 1, 0])
    with adapter.route(labels):
        adapter.read(PROMPTS, torch.arange(4))
        scores = adapter.prompt_scores.scores
    assert scores is not None
    for row, (prompt, label) in enumerate(zip(PROMPTS, labels, strict=True)):
        model: Any = toy_model()
        twin = MoA(rank=2).attach(model, list(TASKS), seed=0)
        perturb(twin)
        with twin.apply(twin.fold(TASKS[int(label)]), merge=True):
            states = model(input_ids=prompt[None], output_hidden_states=True).hidden_states
        expected = adapter.routers(torch.stack([state[0].mean(0, keepdim=True) for state in states[:-1]]))
        assert (scores[:, row] - expected[:, 0]).abs().max() < 1e-6
    by_base = torch.stack([scores_by_hand(adapter, p) for p in PROMPTS], 1)
    assert (by_base - scores).abs().max() > 1e-3
    assert adapter.assign(PROMPTS) == by_base[-1].argmax(-1).tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"joint": False, "stage1_share": 0.0}, "otherwise no stage trains the LoRAs"),
        ({"stage1_share": 1.5}, "is not a share"),
        ({"soft": True, "router_input": "adapted"}, "uses no labels"),
        ({"router_grad": "adapter"}, "have no gradient"),
        ({"stage2": False}, "trains no routers"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MoA(**fields)


def test_a_soft_mixture_weighs_the_loras_by_each_block_s_router() -> None:
    model, adapter = attached(MoA(rank=2, soft=True))
    tokens = torch.stack([torch.tensor([5, 6, 7]), torch.tensor([9, 1, 4])])
    layer = model.model.layers[1].mlp.up_proj
    weights = torch.stack([scores_by_hand(adapter, row) for row in tokens], 1)[1].softmax(-1)
    x = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for labels in ([0, 1], [2, 2]):
        with adapter.route(torch.tensor(labels)):
            adapter.read(list(tokens), torch.arange(2))
            out = layer(x)
        expected = layer.base(x)
        for task in range(3):
            share = 32 / 2 * (x @ layer.a[task].T @ layer.b[task].T)
            expected = expected + weights[:, task, None, None] * share
        assert (out - expected).abs().max() < 1e-6
    with pytest.raises(NotFoldable):
        adapter.fold(TASKS[0])
    with adapter.route(torch.tensor([0])), pytest.raises(RuntimeError, match="read"):
        model(input_ids=tokens)


def test_a_model_without_hidden_states_is_refused() -> None:
    with pytest.raises(ModelError, match="Sequential is not one"):
        MoA().attach(nn.Sequential(nn.Linear(2, 2)), ["a"], seed=0)


def test_what_a_packed_row_is_filled_up_with_counts_for_nothing() -> None:
    from harness.data.encoding import Encoded
    from harness.training.batch import Weighted, packed, padded, token_losses

    model, adapter = attached(MoA(rank=2, eta=0.3))
    rows = [
        Weighted(
            sequence=Encoded(task=TASKS[t], prompt=tuple(p.tolist()), target=(4, 0), truncated=False),
            task=t,
            position=i,
            weight=1.0,
        )
        for i, (t, p) in enumerate(zip((2, 0, 1, 0), PROMPTS, strict=True))
    ]
    found = []
    for batch in (padded(rows), packed(rows), packed(rows, multiple=64)):
        with adapter.route(batch.routes):
            losses = token_losses(model, adapter, batch, reads=True)
            penalty = adapter.penalty()
            (grad,) = torch.autograd.grad(penalty, [adapter.routers.weight])
        found.append((losses.sum().item(), penalty.item(), grad))
    assert packed(rows, multiple=64).routes.shape == (1, 64)
    for losses, penalty, grad in found[1:]:
        assert penalty == pytest.approx(found[0][1], abs=1e-6)
        assert losses == pytest.approx(found[0][0], abs=1e-5)
        assert (grad - found[0][2]).abs().max() < 1e-6
    assert found[0][1] > 0
