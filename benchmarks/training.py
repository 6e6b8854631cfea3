"""Tokens per second of the training loop next to transformers' Trainer with PEFT's LoRA, and the frozen model.

Run by hand: ``python benchmarks/training.py --shape 135m`` (random weights) or ``--model FOLDER``. Rows are
synthetic with PromptCBLUE's lengths, or ``--data DIR`` of that suite (needs ``--model``). In one process all contenders
take their turns, round by round, on the same rows (trainer+ on as many); ratios are medians of the rounds' own ratios.

  ours           rows packed as in training, logits of targets only, rows made in a thread
  trainer        transformers' Trainer and PEFT's LoRA of equal stored rank at their defaults: random order, padded to
                 the longest of 8 rows, logits of every position
  trainer+       the same, with rows of similar length in a batch (50 batches sorted together, as its sampler does) and
                 logits of targets only
  frozen         the frozen model, its gradient to the inputs only, on our micro-batches: no adapter, no optimiser
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from training_rows import TRAINER_BATCH, grouped_rows, real_rows, synthetic_rows

from harness.bench.clock import Clock, paired, undisturbed
from harness.bench.contenders import frozen, twin
from harness.bench.random_model import SHAPES, random_model
from harness.config.spec import TrainConfig
from harness.data.encoding import Encoded
from harness.data.routes import Routes
from harness.method import AdapterMethod, Trait, iter_linear
from harness.models.loading import LoadedModel, load_model
from harness.registry import method_class
from harness.reporting.numbers import MISSING
from harness.runtime.prefetch import Prefetcher
from harness.training.attention import attention
from harness.training.batch import IGNORED, weigh
from harness.training.optimiser import trained_parameters
from harness.training.packing import choose_layout, micro_tokens
from harness.training.step import Stage, StepRunner


def main() -> None:
    options = arguments()
    logging.disable(logging.WARNING)
    loaded = (
        load_model(options.model, options.precision) if options.model else random_model(options.shape, options.blocks)
    )
    found = measure(loaded, options)
    report(loaded, options, found)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Tokens per second of each contender in each round, and what they were measured with."""

    speeds: Mapping[str, Sequence[float]]
    clock: Clock
    ours: Ours
    rank: int


def measure(loaded: LoadedModel, options: argparse.Namespace) -> Measurement:
    """Every contender in interleaved rounds."""
    clock = Clock(device=loaded.device, threads=options.threads)
    tasks, pool = real_rows(loaded, options) if options.data else synthetic_rows(loaded, options)
    method = method_class(options.method)()
    rank = method.ranks(len(tasks)).stored
    layers = [name for name, _ in iter_linear(loaded.model)]
    trainer = TrainerSide(loaded=loaded, layers=layers, rank=rank, options=options, clock=clock)
    plain, grouped = trainer.model(), trainer.model()
    ours = Ours(loaded=loaded, options=options, tasks=tasks, clock=clock)
    contenders: dict[str, Callable[[Sequence[Encoded]], float]] = {
        "ours": ours.seconds,
        "trainer": lambda rows: trainer.seconds(plain, rows, grouped=False),
        "trainer+": lambda rows: trainer.seconds(grouped, rows, grouped=True),
        "frozen": ours.frozen_seconds,
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    with undisturbed(clock):
        for number in range(options.rounds + 1):
            rows = pool(number)
            for name, seconds in contenders.items():
                chosen = grouped_rows(pool, number, len(rows)) if name == "trainer+" else rows
                taken = seconds(chosen)
                if number:  # the first round warms up
                    speeds[name].append(sum(map(len, chosen)) / taken)
    return Measurement(speeds=speeds, clock=clock, ours=ours, rank=rank)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, a hub id or a .gguf file")
    parser.add_argument("--shape", default="135m", choices=list(SHAPES), help="random weights (4 blocks on a CPU)")
    parser.add_argument("--blocks", type=int, help="of a shape with random weights")
    parser.add_argument("--data", help="a folder of PromptCBLUE; needs --model")
    parser.add_argument("--method", default="lora_all")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--batch", type=int, default=16, help="rows of an optimiser step, a multiple of 8")
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.data and not options.model:
        parser.error("--data needs --model, for its tokenizer")
    if options.batch % TRAINER_BATCH:
        parser.error(f"--batch must be a multiple of {TRAINER_BATCH}")
    return options


# Ours


@dataclass(kw_only=True)
class Ours:
    """The loop as it trains, and the frozen model on the same micro-batches. waited: seconds of steps without data."""

    loaded: LoadedModel
    options: argparse.Namespace
    tasks: Sequence[str]
    clock: Clock
    waited: list[float] = field(default_factory=list)
    stepped: list[float] = field(default_factory=list)
    empty: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = TrainConfig(lr=1e-5, batch_size=self.options.batch)
        base = twin(self.loaded.model).eval()
        own = LoadedModel(**{**vars(self.loaded), "model": base})
        method = method_class(self.options.method)()
        if not isinstance(method, AdapterMethod):
            raise SystemExit(
                f"{self.options.method} has no adapter to train: choose a method that trains (harness list)"
            )
        self.frozen = frozen(self.loaded.model)
        adapter = method.attach(base, self.tasks, seed=0)
        reads = Trait.LABEL_FREE in method.traits
        layout = choose_layout(own, adapter, config, reads)
        stage = Stage(
            name="all",
            steps=10**6,
            key=(0,),
            reads=reads,
            trained=trained_parameters(adapter, method),
        )
        self.loop = StepRunner(own, adapter, config, stage, layout)
        self.number = 0

    def seconds(self, rows: Sequence[Encoded]) -> float:
        """Steps of ``batch`` rows each."""
        size, model = self.options.batch, self.loop.loaded.model

        def work() -> None:
            with Prefetcher(lambda i: list(rows[i * size : (i + 1) * size]), 0, len(rows) // size) as ahead:
                for _ in range(len(rows) // size):
                    chosen = ahead.get()
                    self.waited.append(ahead.waited_seconds)
                    self.stepped.append(self.loop.step(self.number, chosen, Routes(tuple(self.tasks))).seconds)
                    self.number += 1

        with attention(model, self.loop.layout.attention):
            model.train()
            return self.clock.seconds(work)

    def frozen_seconds(self, rows: Sequence[Encoded]) -> float:
        """The same micro-batches without adapter and optimiser."""
        size, layout = self.options.batch, self.loop.layout
        capacity = micro_tokens(self.loop.config, self.loaded.device)

        def work() -> None:
            for first in range(0, len(rows), size):
                step = weigh(rows[first : first + size], "token", Routes(tuple(self.tasks)))
                for positions in layout.split([len(w.sequence) for w in step], capacity):
                    batch = layout.collate([step[i] for i in positions], self.loaded)
                    if layout.packed:
                        used = sum(len(step[i].sequence) for i in positions)
                        self.empty.append(1 - used / batch.inputs["input_ids"].numel())
                    self.frozen.step(batch, 0)

        with attention(self.loaded.model, layout.attention):
            return self.clock.seconds(work)


# transformers' Trainer


@dataclass(frozen=True, kw_only=True)
class TrainerSide:
    """PEFT's LoRA in transformers' Trainer; the time is from its first step's begin to its last one's end."""

    loaded: LoadedModel
    layers: Sequence[str]
    rank: int
    options: argparse.Namespace
    clock: Clock

    def model(self) -> Any:
        """The model with PEFT's LoRA, sharing the base's weights."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, lora_dropout=0.0, target_modules=list(self.layers))
        return get_peft_model(twin(self.loaded.model), config)

    def seconds(self, model: Any, rows: Sequence[Encoded], *, grouped: bool) -> float:
        """One pass over the rows."""
        from transformers import PrinterCallback, TrainingArguments

        timer = _timer(self.clock)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=self.options.steps,
                per_device_train_batch_size=TRAINER_BATCH,
                gradient_accumulation_steps=self.options.batch // TRAINER_BATCH,
                train_sampling_strategy="sequential" if grouped else "random",
                bf16=self.loaded.dtype == torch.bfloat16,
                learning_rate=1e-5,
                use_cpu=self.loaded.device.type == "cpu",
                remove_unused_columns=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            trainer = _trainer_class(grouped)(
                model=model,
                args=arguments,
                train_dataset=[{"row": r} for r in rows],
                data_collator=partial(_collated, left=grouped),
                callbacks=[timer],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return float(timer.seconds)


def _timer(clock: Clock) -> Any:
    from transformers import TrainerCallback

    now = time.process_time if clock.kind == "cpu" else time.perf_counter

    class Timer(TrainerCallback):  # type: ignore[misc]
        begun = seconds = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not self.begun:
                self.begun = self.now()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds = self.now() - self.begun

        def now(self) -> float:
            if clock.device.type == "cuda":
                torch.cuda.synchronize()
            return now()

    return Timer()


def _trainer_class(grouped: bool) -> Any:
    from transformers import Trainer

    class TargetsOnly(Trainer):  # type: ignore[misc]
        """Logits of the last positions, where the targets are."""

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")
            width = int((labels != IGNORED).any(0).sum())
            logits = model(**inputs, logits_to_keep=width + 1, use_cache=False).logits[:, :-1].float()
            total = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, -width:].flatten(), ignore_index=IGNORED, reduction="sum"
            )
            return total / num_items_in_batch

    return TargetsOnly if grouped else Trainer


def _collated(examples: Sequence[Mapping[str, Encoded]], left: bool) -> dict[str, Tensor]:
    rows = [e["row"] for e in examples]
    width = max(map(len, rows))

    def padded(lists: Sequence[Sequence[int]], value: int) -> Tensor:
        fill = [[value] * (width - len(x)) for x in lists]
        return torch.tensor([[*f, *x] if left else [*x, *f] for x, f in zip(lists, fill, strict=True)])

    inputs = {
        "input_ids": padded([(*r.prompt, *r.target) for r in rows], 0),
        "attention_mask": padded([[1] * len(r) for r in rows], 0),
        "labels": padded([[*[IGNORED] * len(r.prompt), *r.target] for r in rows], IGNORED),
    }
    return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)} if left else inputs


# What is printed


def report(loaded: LoadedModel, options: argparse.Namespace, found: Measurement) -> None:
    clock, speeds, ours = found.clock, found.speeds, found.ours
    name = options.model or f"{options.shape}, random weights, {loaded.model.config.num_hidden_layers} blocks"
    print(f"{name}, {loaded.dtype}, {loaded.device}, {clock.threads} threads, {clock.kind} time")
    print(f"{options.method}, stored rank {found.rank}; {options.batch} rows a step, {options.rounds} rounds")
    rows = []
    for contender, found in speeds.items():
        ratio = paired(speeds["ours"], found)
        span = MISSING if ratio.low is None else f"{ratio.low:.2f} to {ratio.high:.2f}"
        rows.append(
            (contender, f"{statistics.median(found):.0f}", f"{ratio.median:.2f}", span, _utilisation(loaded, found))
        )
    header = ("contender", "tokens/s", "ours / contender", "95 %", "of the FLOP/s")
    print(tabulate(rows, header, tablefmt="simple", disable_numparse=True, colalign=("left", *["right"] * 4)))
    print(f"\nsteps waited {100 * sum(ours.waited) / sum(ours.stepped):.2f} % of their time for rows")
    layout = ours.loop.layout
    if layout.packed:
        kernel = layout.attention or "the model's own attention"
        print(f"packed rows, {kernel}: {100 * statistics.mean(ours.empty):.2f} % of a row is empty")


def _utilisation(loaded: LoadedModel, speeds: Sequence[float]) -> str:
    """4 FLOP per token and parameter of the blocks (forward, gradient to the inputs), of a large product's FLOP/s."""
    if loaded.device.type != "cuda":
        return MISSING
    blocks = sum(layer.weight.numel() for _, layer in iter_linear(loaded.model))
    return f"{100 * 4 * blocks * statistics.median(speeds) / _peak(loaded):.0f} %"


def _peak(loaded: LoadedModel, size: int = 8192) -> float:
    """FLOP/s of a product of two large matrices in the model's precision."""
    a = torch.randn(size, size, device=loaded.device, dtype=loaded.dtype)
    clock = Clock(device=loaded.device, threads=1)
    best = min(clock.seconds(lambda: a @ a) for _ in range(10))
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
