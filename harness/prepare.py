"""Everything a run needs in memory, made from its resolved spec: rows, tokens, model, adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.data import Mixture, Rows, group, n_steps
from harness.encode import Encoder, check_style, draw, generation_limits
from harness.errors import DataError, ModelError, NotFoldable
from harness.method import Adapter, Trait
from harness.record import Parameters
from harness.resolve import Resolved
from harness.task import Example

if TYPE_CHECKING:
    from harness.model import LoadedModel

_LEAST_PROMPT = 16  # tokens of prompt without which no question can be asked


def train_rows(resolved: Resolved) -> Rows | None:
    """The training rows of the run's tasks; None where the source has no train split and the method needs none."""
    suite, source = resolved.suite, resolved.source
    if "train" not in suite.splits(source):
        if Trait.TRAINS in resolved.method.traits or Trait.ANSWERS in resolved.method.traits or resolved.spec.shots:
            raise DataError(f"{source} has no train split, and {resolved.spec.method.name} needs one. See: --data")
        return None
    tasks = list(resolved.rows.by_task)
    rows = group(suite.read(source, "train"), "train", tasks, resolved.spec.train.per_task)
    if Trait.TRAINS in resolved.method.traits and not sum(rows.counts.values()):
        raise DataError(f"{source}: the train split has no rows of {', '.join(tasks)}")
    return rows


def mixture(resolved: Resolved, rows: Rows) -> Mixture:
    """The training plan of the mixed run."""
    config = resolved.spec.train
    total = sum(rows.counts.values())
    return Mixture(
        rows=rows,
        batch_size=config.batch_size,
        steps=n_steps(total, config.batch_size, config.epochs, config.steps),
        seed=resolved.spec.seed,
        temperature={"proportional": 1.0, "uniform": math.inf}.get(config.mixture) or config.temperature or 1.0,
    )


def encoder(resolved: Resolved, loaded: LoadedModel, rows: Rows | None) -> Encoder:
    """How prompts and targets become tokens. Raises: ModelError where the model's context is too short."""
    spec = resolved.spec
    check_style(loaded.tokenizer, spec.prompt)
    tasks = list(resolved.rows.by_task)
    limits = generation_limits(loaded.tokenizer, rows, tasks, spec.eval.max_new_tokens)
    length = min(spec.train.max_length, loaded.max_context or spec.train.max_length)
    long = {t: n for t, n in limits.items() if n + _LEAST_PROMPT > length}
    if long:
        task, n = max(long.items(), key=lambda item: item[1])
        raise ModelError(
            f"answers of {task} take up to {n} tokens, which leaves no room for a prompt in {length}: "
            f"set a larger train.max_length (the model's context is {loaded.max_context}), a smaller "
            "eval.max_new_tokens, or leave the task out"
        )
    return Encoder(
        tokenizer=loaded.tokenizer,
        style=spec.prompt,
        eos=int(loaded.tokenizer.eos_token_id),
        max_length=length,
        limits=limits,
        shots=draw_shots(resolved, rows),
        n_shots=spec.shots,
    )


def draw_shots(resolved: Resolved, rows: Rows | None) -> dict[str, list[Example]]:
    """In-context examples of each task."""
    spec = resolved.spec
    if not spec.shots or rows is None:
        return {}
    # One more than needed, so that a training row that is itself a shot still gets all of them.
    return {t: draw(rows, t, spec.shots + 1, spec.seed, "shots") for t in resolved.rows.by_task}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run with a model, ready to train and generate.

    memory_before: bytes that the process had in memory before it loaded the model; None where nobody tells.
    """

    loaded: LoadedModel
    adapter: Adapter
    encoder: Encoder
    tasks: Sequence[str]
    train: Rows | None
    memory_before: int | None = None


def prepare(resolved: Resolved, rows: Rows | None) -> Prepared:
    """Load the model, attach the adapter, learn the lengths."""
    import transformers.modeling_utils  # noqa: F401  (what it takes is none of the model's memory)

    from harness.memory import resident_bytes
    from harness.model import load_model

    assert resolved.model is not None
    before = resident_bytes()
    loaded = load_model(resolved.model, resolved.spec.train.precision)
    tasks = list(resolved.rows.by_task)
    code = encoder(resolved, loaded, rows)
    adapter = resolved.method.attach(loaded.model, tasks, seed=resolved.spec.seed)
    return Prepared(loaded=loaded, adapter=adapter, encoder=code, tasks=tasks, train=rows, memory_before=before)


def parameters(resolved: Resolved, prepared: Prepared | None) -> Parameters:
    """Numbers kept in all and in one task's folded LoRA (the largest), and their share of the base model."""
    if prepared is None:
        return Parameters(stored=0, active=0, base=None, percent=None)
    adapter = prepared.adapter
    stored = sum(p.numel() for p in adapter.trainable().values())
    active = stored
    if Trait.FOLDS in resolved.method.traits:
        # An ablation of a method that folds may not: every expert takes part in each of its answers.
        with suppress(NotFoldable):
            folded = [adapter.fold(t).values() for t in prepared.tasks]
            active = max((sum(f.a.numel() + f.b.numel() for f in factors) for factors in folded), default=0)
    base = prepared.loaded.n_parameters
    return Parameters(stored=stored, active=active, base=base, percent=100 * stored / base)
