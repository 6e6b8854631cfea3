"""Counts what a method asks of a GPU's host: launches, waits and copies of a training step and of a decoded token.

Small models are bound by launches on a GPU, so that their number is the speed there; it does not depend on the sizes of
layers. A model with one block and one with two are counted on a device that counts, and the difference is what each
further block adds.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final

import torch

from harness.bench.contenders import OPTIMISER, Contender, frozen, peft_lora
from harness.bench.counted_device import Counts, OpCounter, counted_device, to_counted
from harness.bench.stages import Stages
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.errors import NotFoldable
from harness.generation.decoding import decode
from harness.method import Adapter, AdapterMethod, iter_linear
from harness.models.loading import LoadedModel
from harness.training.batch import packed, weigh
from harness.training.optimiser import trained_parameters
from harness.training.packing import Layout
from harness.training.step import Stage, StepRunner

LOG: Final = logging.getLogger(__name__)

BLOCKS: Final = 30
"""Counts are those of a model with this many blocks, as one of 135 M parameters has."""

_VOCABULARY: Final = 97
_PROMPT, _TARGET = 12, 8  # Tokens of each sequence.
_STEPS: Final = (2, 10)  # Tokens of two predictions: the difference is that of as many steps as one check follows.
_PEFT_RANK: Final = 16


@dataclass(frozen=True, kw_only=True)
class LaunchRow:
    """One kind of training stage of a method, counted in a model of ``BLOCKS`` blocks.

    n_tasks, n_trained: tasks and parameters that the stage trains.
    block, whole: launches of the forward and backward pass of a packed micro-batch, for each block and in all.
    to_peft: ``whole`` relative to PEFT's LoRA with float32 factors under autocast; None without PEFT.
    waits, blocking_copies: of a whole optimiser step of one micro-batch, with attention that needs a mask.
    places: the waits and blocking copies by the line that made them.
    """

    stage: str
    n_tasks: int
    n_trained: int
    block: int
    whole: int
    to_peft: float | None
    waits: int
    blocking_copies: int
    places: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class DecodedRow:
    """A decoded token of all sequences of a batch, in a model of ``BLOCKS`` blocks with float16 or bfloat16 weights.

    kind: "base", "folded" (an adapter beside the weights) or "routed". launches, waits: of one step.
    prompts: launches of each block to put 8 prompts that were read into the cache, and to put 2.
    """

    kind: str
    launches: int
    waits: float
    prompts: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LaunchReport:
    """rows: by method. frozen, peft: launches of the base model with a gradient to its input, and of PEFT's LoRA."""

    n_tasks: int
    frozen: int
    peft: int | None
    rows: Mapping[str, Sequence[LaunchRow]]
    decoded: Mapping[str, Sequence[DecodedRow]]


def count_launches(methods: Mapping[str, AdapterMethod], n_tasks: int) -> LaunchReport:
    """Count methods with default fields, by name. Raises: UsageError with a version of PyTorch that cannot."""
    with counted_device() as counter:
        has_peft = importlib.util.find_spec("peft") is not None
        peft = count_whole(counter, n_tasks, peft_contender) if has_peft else None
        rows = {name: count_method(counter, method, n_tasks, peft) for name, method in methods.items()}
        return LaunchReport(
            n_tasks=n_tasks,
            frozen=count_whole(counter, n_tasks, frozen),
            peft=peft,
            rows=rows,
            decoded={name: count_decoding(counter, method, n_tasks) for name, method in methods.items()},
        )


def count_method(counter: OpCounter, method: AdapterMethod, n_tasks: int, peft: int | None) -> list[LaunchRow]:
    """The rows of a method's stages."""
    found = []
    for blocks in (1, 2):
        stages = _CountedStages(counter, small_model(counter, blocks), method, n_tasks)
        stages.run()
        found.append(stages.rows)
    rows = []
    for one, two in zip(*found, strict=True):
        whole = extrapolated(one.whole, two.whole)
        rows.append(replace(two, block=two.whole - one.whole, whole=whole, to_peft=whole / peft if peft else None))
    return rows


def extrapolated(one: int, two: int, blocks: int = BLOCKS) -> int:
    """The count of a model of ``blocks`` blocks from those of one block and of two."""
    return one + (blocks - 1) * (two - one)


class _CountedStages(Stages[LaunchRow]):
    """Counts each kind of stage."""

    def __init__(self, counter: OpCounter, loaded: LoadedModel, method: AdapterMethod, n_tasks: int) -> None:
        super().__init__(loaded, method, n_tasks)
        self.counter = counter

    def measure(self, stage: str, own: Contender, tasks: Sequence[str], n_trained: int) -> LaunchRow:
        passes = count_pass(self.counter, replace(own, optimiser=None), self.tasks, tasks)
        names = [name for name, p in self.adapter.trainable().items() if p.requires_grad]
        step = self._step(stage, own, names, tasks)
        return LaunchRow(
            stage=stage,
            n_tasks=len(tasks),
            n_trained=n_trained,
            block=0,
            whole=passes.launches,
            to_peft=None,
            waits=step.waits,
            blocking_copies=step.blocking_copies,
            places=step.places,
        )

    def _step(self, name: str, own: Contender, names: Sequence[str], tasks: Sequence[str]) -> Counts:
        trained = trained_parameters(self.adapter, self.method, names)
        stage = Stage(name=name, steps=3, key=(), reads=own.reads, trained=trained)
        loaded, routes = replace(self.loaded, model=self.model), Routes(self.tasks)
        steps = StepRunner(loaded, self.adapter, OPTIMISER, stage, Layout(packed=True))
        sequences = make_sequences(tasks)
        steps.step(0, sequences, routes)  # It allocates the optimiser's state.
        batches = steps.ahead(sequences, routes)  # Training collates ahead, in another thread.
        return self.counter.count(lambda: steps.step(1, sequences, routes, ahead=batches))


def count_pass(counter: OpCounter, contender: Contender, all_tasks: Sequence[str], tasks: Sequence[str]) -> Counts:
    """The counts of a forward and backward pass of a packed micro-batch, after one that does not count."""
    weighted = weigh(make_sequences(tasks), "token", Routes(tuple(all_tasks)))
    batch = packed(weighted).placed(counter.device)
    contender.step(batch, 0)
    for parameter in getattr(contender.forward, "parameters", list)():
        parameter.grad = None  # Without one the gradient is moved, and not added.
    return counter.count(lambda: contender.step(batch, 1))


def make_sequences(tasks: Sequence[str]) -> list[Encoded]:
    """Two sequences of random tokens for each task."""
    drawn = torch.Generator().manual_seed(0)
    sequences = []
    for task in [*tasks, *tasks]:
        ids = torch.randint(_VOCABULARY, (_PROMPT + _TARGET,), generator=drawn).tolist()
        sequences.append(Encoded(task=task, prompt=tuple(ids[:_PROMPT]), target=tuple(ids[_PROMPT:]), truncated=False))
    return sequences


def small_model(counter: OpCounter, blocks: int) -> LoadedModel:
    """A small random Llama in bfloat16 on the counted device, which never ends a prediction."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)
    return LoadedModel(
        model=to_counted(model),
        tokenizer=SimpleNamespace(eos_token_id=_VOCABULARY),  # A token that the model does not have.
        device=counter.device,
        dtype=torch.bfloat16,
        n_parameters=sum(p.numel() for p in model.parameters()),
        max_context=None,
        encoder_decoder=False,
    )


def peft_contender(model: Any) -> Contender:
    """PEFT's LoRA on all linear layers. Raises: ImportError without PEFT."""
    return peft_lora(model, [name for name, _ in iter_linear(model)], _PEFT_RANK)


def count_whole(counter: OpCounter, n_tasks: int, make: Callable[[Any], Contender]) -> int:
    """The launches of a forward and backward pass of what ``make`` makes of a model of ``BLOCKS`` blocks."""
    tasks = [f"task{i}" for i in range(n_tasks)]
    made = [replace(make(small_model(counter, blocks).model), optimiser=None) for blocks in (1, 2)]
    one, two = (count_pass(counter, contender, tasks, tasks).launches for contender in made)
    return extrapolated(one, two)


def count_decoding(counter: OpCounter, method: AdapterMethod, n_tasks: int) -> list[DecodedRow]:
    """A step of decoding: the base model, the adapter folded (if it folds), and the adapter routed."""
    tasks = [f"task{i}" for i in range(n_tasks)]
    kinds: dict[str, list[tuple[int, int, int, int]]] = {}
    for blocks in (1, 2):
        loaded = small_model(counter, blocks)
        adapter = method.attach(loaded.model, tasks, seed=0)
        for kind, context in _contexts(adapter, tasks).items():
            kinds.setdefault(kind, []).append(_decoded(counter, loaded, context))
    found = []
    for kind, (one, two) in kinds.items():
        launches = extrapolated(one[0], two[0])
        found.append(
            DecodedRow(
                kind=kind,
                launches=round(launches / (_STEPS[1] - _STEPS[0])),
                waits=two[1] / (_STEPS[1] - _STEPS[0]),
                prompts=(two[2] - one[2], two[3] - one[3]),
            )
        )
    return found


def _contexts(adapter: Adapter, tasks: Sequence[str]) -> dict[str, Callable[[int], Any]]:
    """The contexts of n sequences in which a model is decoded."""
    found: dict[str, Callable[[int], Any]] = {"base": lambda n: adapter.off()}
    try:
        factors = adapter.fold(tasks[0])
    except NotFoldable as error:
        LOG.info("counted without a fold: %s", error)
    else:
        found["folded"] = lambda n: adapter.apply(factors, merge=False)
    return {**found, "routed": lambda n: adapter.route(torch.arange(n) % len(tasks))}


def _decoded(counter: OpCounter, loaded: LoadedModel, context: Callable[[int], Any]) -> tuple[int, int, int, int]:
    """Launches and waits of the steps between two lengths; launches for one token of 8 prompts, and of 2."""

    def counts(n: int, steps: int) -> Counts:
        prompts = [[i + 1] * (i % 3 + 1) for i in range(n)]
        with context(n):
            return counter.count(lambda: decode(loaded, prompts, [steps] * n, lambda rows: nullcontext()))

    short, long = (counts(4, steps) for steps in _STEPS)
    many, few = counts(8, 1), counts(2, 1)
    return long.launches - short.launches, long.waits - short.waits, many.launches, few.launches
