"""Compiled blocks: one graph for all blocks, all tasks and all steps; and what happens where that is impossible."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_net import TASKS, Net, inputs
from toy_steps import PACKED, ROUTES, make_sequences, make_steps

from harness.errors import TrainingError
from harness.registry import method_class
from harness.testing.toys import perturb
from harness.training.compiled_blocks import CompiledBlocks, blocks_of
from methods.base import LoRAMethod

LONG = [
    "c_poly",
    "mtl_lora",
    "lora_all",
    "cgc_lora",
    "moe_lora",
    "hydra_lora",
    "multi_lora",
    "m_lora",
    "lora_moe",
    "mola",
    "adamole",
]
METHODS = ["lora_single", *(pytest.param(name, marks=pytest.mark.long) for name in LONG)]
ONE, ANOTHER, TWO, THREE = [[0, 0, 0]] * 4, [[2, 2, 2]] * 4, [[0, 0, 1]] * 4, [[2, 0, 1]] * 4  # Tasks of tokens.
EXAMPLES = torch.arange(12).view(4, 3)


class Graphs:
    """A back end that runs each graph as it is, and counts them."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, graph: Any, example: Any) -> Callable[..., Any]:
        self.n += 1
        forward: Callable[..., Any] = graph.forward
        return forward


class Stack(nn.Module):
    """Nets one after another, as the blocks of a model are."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    """x + net(x), the width of which is that of x."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.up = nn.Linear(4, 8, bias=False, dtype=torch.float64).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.net(x))


@pytest.fixture(autouse=True)
def _no_graphs() -> Iterator[None]:
    """PyTorch keeps graphs by code, for the whole process."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def attached(name: str, n_blocks: int = 2) -> tuple[Stack, Any]:
    model = Stack(n_blocks)
    method = method_class(name)()
    assert isinstance(method, LoRAMethod)
    adapter = method.attach(model, TASKS, seed=0)
    perturb(adapter)
    model.train()
    adapter.begin_step("all", 1)
    return model, adapter


def passed(model: Stack, adapter: Any, labels: Any, compiled: CompiledBlocks | None = None) -> list[Tensor]:
    """The output, and the gradients of the parameters, of a pass in training."""
    parameters = adapter.trainable().values()
    for parameter in parameters:
        parameter.grad = None
    with adapter.route(torch.tensor(labels), EXAMPLES):
        x = inputs().requires_grad_()
        if compiled is None:
            out = model(x)
            (out.square().sum() + adapter.penalty()).backward()
        else:
            with compiled.in_use():
                out = model(x)
                (out.square().sum() + adapter.penalty()).backward()
    return [out.detach(), *(p.grad for p in parameters if p.grad is not None)]


@pytest.mark.parametrize("name", METHODS)
def test_every_task_and_every_set_of_tasks_runs_in_the_same_few_graphs(name: str) -> None:
    model, adapter = attached(name)
    graphs, counts = Graphs(), []
    compiled = CompiledBlocks(model, backend=graphs)
    for labels in (ONE, ANOTHER, TWO, THREE):
        expected = passed(model, adapter, labels)
        found = passed(model, adapter, labels, compiled)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
        counts.append(graphs.n)
    # Blocks may differ, as the number of experts does by depth; a weight at the start of a tensor is a constant too.
    assert counts[0] == counts[1] <= 2, "another task needs no other graph"
    assert counts[2] == counts[3] <= 2 * counts[0], "another set of tasks needs no other graph"
    assert compiled.is_on
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_deeper_model_has_as_many_graphs() -> None:
    def count(n_blocks: int) -> int:
        torch._dynamo.reset()
        model, adapter = attached("cgc_lora", n_blocks)
        graphs = Graphs()
        passed(model, adapter, THREE, CompiledBlocks(model, backend=graphs))
        return graphs.n

    assert count(2) == count(5) == 1


def test_blocks_are_compiled_in_passes_of_training_only() -> None:
    model, adapter = attached("lora_all")
    graphs = Graphs()
    compiled = CompiledBlocks(model, backend=graphs)
    assert blocks_of(model) == list(model.blocks)
    with compiled.in_use():
        assert all("forward" in vars(block) for block in model.blocks)
    assert not any("forward" in vars(block) for block in model.blocks)
    passed(model, adapter, ONE)
    assert graphs.n == 0


def test_checkpointed_blocks_run_in_graphs_and_keep_their_checkpoints_without() -> None:
    model, adapter = attached("lora_single")
    graphs = Graphs()
    compiled = CompiledBlocks(model, checkpointed=True, backend=graphs, limit=1)
    for labels, n_graphs, is_on in ((ONE, 1, True), (TWO, 1, False)):
        found = compiled.attempt(partial(passed, model, adapter, labels, compiled))
        assert all(torch.equal(*pair) for pair in zip(found, passed(model, adapter, labels), strict=True))
        assert (graphs.n, compiled.is_on) == (n_graphs, is_on)
    forwards = count_forwards(model, lambda: passed(model, adapter, ONE, compiled))
    assert forwards == 2 * len(model.blocks), "backward repeats the forward of each block"


def count_forwards(model: Stack, work: Callable[[], object]) -> int:
    """How often the blocks' first layers are called."""
    calls: list[nn.Module] = []
    handles = [block.net.register_forward_hook(lambda layer, *_: calls.append(layer)) for block in model.blocks]  # type: ignore[union-attr, operator]
    work()
    for handle in handles:
        handle.remove()
    return len(calls)


def test_a_model_without_blocks_is_compiled_as_a_whole() -> None:
    net = Net()
    assert blocks_of(net) == [net]


def test_too_many_graphs_end_in_one_notice_and_the_same_gradients(caplog: pytest.LogCaptureFixture) -> None:
    model, adapter = attached("lora_single")
    compiled = CompiledBlocks(model, backend=Graphs(), limit=1)
    with caplog.at_level(logging.WARNING):
        for labels in (ONE, TWO, ONE):
            found = compiled.attempt(lambda labels=labels: passed(model, adapter, labels, compiled))
            expected = passed(model, adapter, labels)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    (notice,) = [record.getMessage() for record in caplog.records if record.name.startswith("harness")]
    assert "need more than 1 different graphs, so training continues without compilation" in notice
    assert "leave out train.compile" in notice
    assert not compiled.is_on


def test_a_block_that_cannot_be_compiled_is_an_error_with_the_remedy() -> None:
    def broken(graph: Any, example: Any) -> Callable[..., Any]:
        raise OSError("no compiler here")

    model, adapter = attached("lora_all")
    compiled = CompiledBlocks(model, backend=broken)
    with pytest.raises(TrainingError, match=r"no compiler here.*Install a C\+\+ compiler.*or leave out"):
        compiled.attempt(lambda: passed(model, adapter, ONE, compiled))


@pytest.mark.long
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("name", ["moa", "cgc_lora", "align_lora", "mixlora"])
def test_steps_of_a_language_model_are_those_without_compilation(
    toy_llama: Callable[..., Any], name: str, checkpointed: bool
) -> None:
    from harness.training.attention import checkpoint_activations

    def losses(backend: Graphs | None) -> list[float]:
        model = toy_llama()
        steps = make_steps(model, method_class(name)(), PACKED)  # type: ignore[arg-type]
        if backend is not None:
            steps.compiled = CompiledBlocks(model, checkpointed=checkpointed, backend=backend)
        model.train()
        checkpoint_activations(model, checkpointed and backend is None)
        return [steps.step(i, make_sequences(n, seed=i), ROUTES).loss for i, n in enumerate((3, 4))]

    graphs = Graphs()
    assert losses(graphs) == pytest.approx(losses(None), rel=1e-6)
    # Reading prompts leaves hooks of transformers on attention layers, which divide a block into several graphs.
    assert 0 < graphs.n <= (16 if name == "moa" else 4)
