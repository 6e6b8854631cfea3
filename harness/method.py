"""The contract for methods: the interfaces between a way to adapt a model and the engine that trains and evaluates it.

Shapes: B sequences, S tokens of a sequence, T tasks, d_in and d_out the widths of an adapted linear layer, r a rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from harness.errors import BudgetError, UsageError
from harness.linear_layers import linear_layers
from harness.task import Example

if TYPE_CHECKING:
    from torch import Tensor, nn


class Trait(StrEnum):
    """Capabilities of an adapter method. They select its contract tests and what the engine uses of its adapter."""

    ROUTED = "routed"  # Tasks get different weights, so that equal prompts may have different predictions.
    LABEL_FREE = "label_free"  # The adapter can choose the route from the prompt, without labels (Routing.assign).
    FOLDS = "folds"  # A task's share of the adapter is one plain LoRA.


class ArtefactKind(StrEnum):
    """The meaning of an artefact's value; plots select artefacts by it."""

    GATES = "gates"  # {gate: {task: [weight of each expert]}}
    SKILLS = "skills"  # {layer: {task: [share of each skill]}}
    MATRIX = "matrix"  # {"rows": [name], "columns": [name], "values": [[number or None]]}; title, note
    OTHER = "other"  # Any JSON value; it is kept in the run's directory and not drawn.


@dataclass(frozen=True, kw_only=True)
class LoRAFactors:
    """One plain LoRA of one linear layer: delta W = B A, every scale in B. a: (r, d_in), b: (d_out, r)."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The rank that a method may use: ``active`` (of one task's folded LoRA) or ``stored`` (of all parameters)."""

    kind: str
    rank: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.rank}"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Rank of all stored parameters, and of one task's folded LoRA (active), in every adapted layer."""

    stored: int
    active: int


@dataclass(frozen=True, kw_only=True)
class TaskParts:
    """The parts of one parameter that only one task uses, such as its vector in a task embedding.

    In a step without examples of a task, its parts and their moments stay as they are.

    dim: the dimension along which the parameter is divided.
    tasks: for each index of this dimension, the index of the task that it belongs to; None: all tasks share it.
    """

    dim: int
    tasks: tuple[int | None, ...]


class Routing(Protocol):
    """The part of an adapter that generation uses: the share of each sequence, and one task's share folded.

    Adapted layers are off, routed, folded or merged. Outside the contexts below they are routed but have no route, and
    a forward raises RuntimeError, so that no result can come from a forgotten route. Contexts do not nest.
    """

    def route(self, labels: Tensor, examples: Tensor | None = None) -> AbstractContextManager[None]:
        """Routed: each sequence (labels of shape (B,)) or token ((B, S), packed sequences) uses its task's share.

        Args:
            labels: indices into the tasks given to ``attach``. Beam search repeats sequences: sequence i then has the
                label i // (sequences / len(labels)).
            examples: see ``StepRouting.route``; without effect outside training.
        """

    def off(self) -> AbstractContextManager[None]:
        """Off: the base model's own output, bit for bit."""

    def apply(self, factors: Mapping[str, LoRAFactors], *, merge: bool) -> AbstractContextManager[None]:
        """Folded (``merge=False``) or merged into float32 weights (True; restored by copy, bit for bit, on exit)."""

    def fold(self, task: str) -> Mapping[str, LoRAFactors]:
        """One task's share as plain LoRA factors by module name of the base model. Raises NotFoldable."""

    def assign(self, prompts: Sequence[Tensor]) -> Sequence[int] | None:
        """The route of each tokenised prompt (1-d LongTensor), chosen without labels. None: the task is the route."""

    def read(self, prompts: Sequence[Tensor], owner: Tensor) -> None:
        """For trait LABEL_FREE, called inside ``route`` before each forward: the tokenised prompts of its sequences.

        Args:
            prompts: 1-d LongTensors, without targets and padding.
            owner: of the shape of the route's labels: the index of the prompt of each sequence or token, or -1.
        """


class BaseRouting:
    """A ``Routing`` without an adapter: every sequence uses the base model.

    off: gives the context in which the model is its base; ``adapter.off`` where an adapter is attached.
    """

    def __init__(self, off: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._off = off

    def route(self, labels: Tensor, examples: Tensor | None = None) -> AbstractContextManager[None]:
        return self._off()

    def off(self) -> AbstractContextManager[None]:
        return self._off()

    def apply(self, factors: Mapping[str, LoRAFactors], *, merge: bool) -> AbstractContextManager[None]:
        return self._off()

    def fold(self, task: str) -> Mapping[str, LoRAFactors]:
        return {}

    def assign(self, prompts: Sequence[Tensor]) -> Sequence[int] | None:
        return None

    def read(self, prompts: Sequence[Tensor], owner: Tensor) -> None:
        """The base model has no router that reads prompts."""


class StepRouting(Protocol):
    """The part of an adapter that a training step uses."""

    def begin_step(self, stage: str, step: int) -> None:
        """Called before the forwards of each optimiser step, with the same arguments in every process."""

    def route(self, labels: Tensor, examples: Tensor | None = None) -> AbstractContextManager[None]:
        """As ``Routing.route``; the context stays open until backward has ended.

        Args:
            examples: of the shape of ``labels``, the position in the whole step of the example that each sequence or
                token belongs to. Noise depends only on (seed, stage, step, layer, example), so it is the same however
                the step is divided into micro-batches and processes. None: the sequences are the whole step, in order.
        """

    def read(self, prompts: Sequence[Tensor], owner: Tensor) -> None:
        """As ``Routing.read``."""

    def penalty(self) -> Tensor:
        """The method's own loss term, summed over the prompts of the last ``read``; the engine divides. A scalar."""


@runtime_checkable
class CountsTokens(Protocol):
    """An adapter whose penalty is a mean over tokens of the text. This is optional."""

    def count_tokens(self, masks: Sequence[Tensor]) -> None:
        """Called inside ``route`` before each forward of training.

        Args:
            masks: BoolTensor (B, S) on the CPU of the shape of ``input_ids``, False for padding and for what fills a
                packed sequence; an encoder-decoder has a second one, of its decoder's side.
        """


class Adapter(Routing, StepRouting, Protocol):
    """The trainable part that a method adds to a model."""

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Every parameter of the adapter by name; nothing else on the model is ever trained."""

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors that the adapter needs to be loaded back to equal outputs."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``; raises ValueError naming missing, unknown or misshapen tensors."""

    def task_parts(self) -> Mapping[str, TaskParts]:
        """The parameters of ``trainable`` that are divided into parts of single tasks, by name."""

    def detach(self) -> None:
        """Restore the model to its state before ``attach``."""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The E experts of one adapted layer one by one, with which `harness bench` measures the cost of a loop over them.

    a: E of shape (r, d_in). b: E of shape (d_out, r).
    weights: returns g (M, E), with its gradient, for each of the M labels of the current route.
    merge: "output", s sum_k g_k B_k A_k x; or "factor", s (sum_k g_k B_k) (sum_k g_k A_k) x. scale: s.
    """

    a: Sequence[Tensor]
    b: Sequence[Tensor]
    weights: Callable[[], Tensor]
    merge: str
    scale: float


@runtime_checkable
class HasExperts(Protocol):
    """An adapter that lists its experts. This is optional: without it `harness bench` has no loop to compare with."""

    def experts(self) -> Mapping[str, Experts]:
        """By module name, the layers whose output is a weighted sum over experts."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The finished run that a run is initialised from: its tasks by route, and its adapter's ``state_dict``."""

    tasks: tuple[str, ...]
    state: Mapping[str, Tensor]


class Trainer(Protocol):
    """The engine, as ``AdapterMethod.fit`` uses it. It skips finished stages and resumes an unfinished one."""

    def train(
        self,
        stage: str,
        parameters: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        share: float = 1.0,
    ) -> None:
        """Train one stage; its name is unique within the run.

        Args:
            parameters: names from ``Adapter.trainable`` that change in this stage (default all).
            tasks: the tasks whose examples are used (default all). With n_t of N examples the batch size is
                max(1, round(batch_size * n_t / N)) and the number of steps is that of the mixed run.
            share: the share of the run's steps that this stage gets.
        """

    def examples(self, task: str, n: int, stage: str) -> list[Example]:
        """At most n examples of the train split, drawn with the run's seed and the stage's name."""

    def loss(self, examples: Sequence[Example]) -> float:
        """Mean loss over examples (each the mean over its target tokens), without gradient, routed by their tasks."""

    def done(self, stage: str) -> bool:
        """True if the stage finished before (on resume)."""

    def finish(self, stage: str) -> None:
        """Mark a stage that does not use ``train`` (a search) as finished and checkpoint the adapter."""

    def remember(self, key: str, value: Any) -> None:
        """Save a JSON value (a search's trials) in the checkpoint, which is written at once."""

    def recall(self, key: str) -> Any:
        """The value that ``remember`` saved, or None."""

    def reuse(self, stage: str) -> Mapping[str, Tensor] | None:
        """The adapter state of this stage from another finished run that trained the same stage; None if none did."""

    def artefact(self, name: str, value: Any, kind: ArtefactKind) -> None:
        """Save a JSON value for reports as ``artefacts/<name>.json``; plots select it by its kind."""

    @property
    def seed(self) -> int:
        """The run's seed, for a method's own random choices."""

    @property
    def start(self) -> Start | None:
        """The finished run that this one is initialised from (``--from``); see ``AdapterMethod.continues``."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A row of a leaderboard: a ``Baseline`` or an ``AdapterMethod``. Subclass one of these two.

    A frozen dataclass whose fields are its hyper-parameters (``method.<field>`` keys): JSON values and their tuples.
    """

    version: ClassVar[int]  # Raise it whenever results change: runs of another version are not reused.
    summary: ClassVar[str] = ""  # One line for `harness list`.
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # By name, the fields that differ.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # By name ("paper"), the keys (method.x, train.y) it sets.
    inference_fields: ClassVar[frozenset[str]] = frozenset()  # Fields that change predictions and never training.
    # Fields of folders ("DIR" or "name=DIR"), with the files of each that decide the result. The hashes of these files
    # are part of a run, and the paths are not.
    folders: ClassVar[Mapping[str, Sequence[str]]] = {}
    traits: ClassVar[frozenset[Trait]] = frozenset()
    trains: ClassVar[bool] = False  # Whether there are parameters to train.


@dataclass(frozen=True, kw_only=True)
class Baseline(Method):
    """A method without a model: it predicts from only the training examples of the task."""

    @abstractmethod
    def predict(self, examples: Sequence[Example], train: Sequence[Example]) -> Sequence[str]:
        """One prediction for each of one task's examples, whose targets are empty. train: of this task, maybe none."""


@dataclass(frozen=True, kw_only=True)
class AdapterMethod(Method):
    """A method that puts an adapter on a frozen model and trains the adapter.

    With ``trains = False`` the adapter has no parameters: ``fit`` is not called and nothing is saved.
    """

    trains: ClassVar[bool] = True
    mixes_tasks: ClassVar[bool] = True  # Whether a stage trains several tasks, which train.balance can then weigh.
    continues: ClassVar[bool] = False  # Whether a run may be initialised from a finished one (Trainer.start).

    @abstractmethod
    def attach(self, model: nn.Module, tasks: Sequence[str], *, seed: int) -> Adapter:
        """Put the adapter on a frozen model. Initial values depend only on (seed, module name, expert)."""

    @abstractmethod
    def ranks(self, n_tasks: int) -> Ranks:
        """Stored and active rank of every adapted layer with that many tasks."""

    def fit(self, adapter: Adapter, trainer: Trainer, tasks: Sequence[str]) -> None:
        """Train the adapter. Default: one stage, all tasks mixed."""
        trainer.train("all")

    def stage_key(self, stage: str, tasks: Sequence[str]) -> str | None:
        """A key for the result of a stage, besides the run's data, model and settings; None: it is not reused.

        Stages of two methods with equal keys end with equal parameters under equal names (see ``Trainer.reuse``).
        """
        return None

    def kept_stages(self, tasks: Sequence[str]) -> Sequence[str]:
        """Stages whose parameters no later stage changes: the finished adapter still holds them."""
        return ()

    def check_start(self, method: Method, start: Sequence[str], tasks: Sequence[str]) -> None:
        """Raises UsageError if a run of ``method`` on the tasks ``start`` cannot initialise one on ``tasks``."""
        raise UsageError(f"{type(self).__name__} cannot be initialised from another run: leave --from out")

    def lr_factor(self, parameter: str) -> float:
        """The factor on the learning rate of a parameter of ``Adapter.trainable``."""
        return 1.0

    def within(self, budget: Budget, n_tasks: int) -> AdapterMethod:
        """The same method with ranks as near to the budget as possible, never above it.

        Raises: BudgetError naming the smallest possible rank.
        """
        ranks = self.ranks(n_tasks)
        used = ranks.active if budget.kind == "active" else ranks.stored
        if used > budget.rank:
            raise BudgetError(
                f"{type(self).__name__} needs {budget.kind} rank {used} and the budget is {budget}: "
                f"use --budget {budget.kind}:{used} or more"
            )
        return self


def adapter_method(method: Method) -> AdapterMethod:
    """The same method, checked to have an adapter. Raises TypeError for a baseline: callers handle baselines first."""
    if not isinstance(method, AdapterMethod):
        raise TypeError(f"{type(method).__name__} is a baseline and has no adapter")
    return method


@dataclass(frozen=True, kw_only=True)
class NamedFolder:
    """An entry of a field of ``Method.folders``. name: None if the entry is a folder alone."""

    name: str | None
    path: Path


def named_folder(entry: str) -> NamedFolder:
    """``name=DIR`` or ``DIR`` as its parts."""
    name, sign, folder = entry.partition("=")
    if sign and "/" not in name:
        return NamedFolder(name=name.strip(), path=Path(folder.strip()))
    return NamedFolder(name=None, path=Path(entry.strip()))


def iter_linear(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of the model's blocks by name, without the output head: the usual target modules of a LoRA.

    Layers that a text never goes through (the tower of a model for images) are not among them, nor are routers and
    experts that read only some of the tokens; see ``harness.linear_layers``. Raises: ModelError.
    """
    yield from linear_layers(model).layers.items()
