"""The parts of ``gpu_check.py``: what each measures, and the thresholds of its verdicts."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from gpu_tools import (
    BLOCK,
    KERNELS,
    Machine,
    Part,
    Results,
    Training,
    always,
    count_waits,
    ms_per_token,
    packed_with,
    rows_of,
)
from torch import Tensor
from torch.nn.functional import linear, one_hot

from harness.bench.contenders import frozen
from harness.bench.measure import OURS, PEFT, BenchPlan, bench, chosen
from harness.bench.random_model import random_model
from harness.data.encoding import Encoded
from harness.generation.decoding import decode
from harness.method import AdapterMethod, iter_linear
from harness.models.loading import LoadedModel
from harness.registry import method_class
from harness.training.attention import attention, checkpoint_activations
from harness.training.batch import packed, weigh
from harness.training.packing import Layout


def machine_part(machine: Machine, log: Results) -> None:
    n = 8192 if machine.is_gpu else 256
    a = torch.randn(n, n, device=machine.device, dtype=torch.bfloat16)
    flops = 2 * n**3 / machine.ms(lambda: a @ a, 10) * 1e3
    memory = torch.empty(2**30 if machine.is_gpu else 2**20, dtype=torch.uint8, device=machine.device)
    log.figure("device", torch.cuda.get_device_name() if machine.is_gpu else "CPU")
    log.figure("torch", torch.__version__)
    log.figure("TFLOP/s of a large product", flops / 1e12)
    log.figure("GB/s of a copy", 2 * memory.numel() / machine.ms(memory.clone) * 1e3 / 1e9)


def numbers_part(machine: Machine, log: Results) -> None:
    for name in ("lora_all", "cgc_lora", "moe_lora", "c_poly", "lora_single", "moa"):
        ends = []
        for device in (torch.device("cpu"), machine.device):
            single = random_model("135m", 1, "fp32", "cpu")
            model = single.model.double().to(device)
            training = Training.of(
                replace(single, model=model, device=device, dtype=torch.float64),
                name,
                packed_with(None),
                micro_tokens=128,
                lr=1e-3,
            )
            losses = [training.step(i, rows_of(single, 256, i, longest=96).rows).loss for i in range(3)]
            ends.append((losses, training.weights()))
        (cpu_losses, cpu), (losses, weights) = ends
        largest = max(abs(a - b) for a, b in zip(cpu_losses, losses, strict=True))
        largest = max(largest, *(float((cpu[key] - weights[key]).abs().max()) for key in cpu))
        log.verdict(f"{name}: three float64 steps, largest difference from the CPU", largest, "<=", 1e-6)


def waits_part(machine: Machine, log: Results) -> None:
    loaded, found = machine.model(blocks=4), {}
    rows = rows_of(loaded, machine.tokens).rows
    for name in ("lora_all", "cgc_lora", "c_poly"):
        training = Training.of(loaded, name)
        training.step(0, rows)
        found[name] = count_waits(lambda training=training: training.step(1, rows))
        log.figure(f"{name}: waits of a training step", found[name])
    log.verdict("waits of a training step of lora_all", found["lora_all"], "<=", 3)
    log.verdict("more waits of c_poly than of lora_all", found["c_poly"] - found["lora_all"], "<=", 1)
    endless = replace(loaded, tokenizer=SimpleNamespace(eos_token_id=-1))
    loaded.model.generation_config.eos_token_id = None
    prompts = [[10 + i] * 64 for i in range(16)]
    few, many = (count_waits(lambda n=n: decode(endless, prompts, [n] * 16, always)) for n in (2, 34))
    log.verdict("waits per decoded token", (many - few) / 32, "<=", 0.2)


def attention_part(machine: Machine, log: Results) -> None:
    for shape in dict.fromkeys(("135m", machine.large)):
        loaded = machine.model(shape, blocks=4)
        given = rows_of(loaded, machine.tokens)
        batch = packed(weigh(given.rows, "token", given.routes), loaded.device, BLOCK)
        found: dict[str | None, float] = {}
        for kernel in KERNELS if machine.is_gpu else (None,):
            with attention(loaded.model, kernel):
                contender = frozen(loaded.model)  # the copy has the kernel
            found[kernel] = machine.ms(partial(contender.step, batch, 0))
            log.figure(f"{shape}: ms of a packed step, {kernel or 'the own kernel'}", found[kernel])
        chosen_kernel = Training.of(loaded, "lora_all").steps.layout.attention
        log.figure(f"{shape}: chosen kernel", chosen_kernel or "the own kernel")
        fastest = min(found.values())
        log.verdict(f"{shape}: chosen kernel / fastest", found.get(chosen_kernel, fastest) / fastest, "<=", 1.1)


def pieces_part(machine: Machine, log: Results) -> None:
    device, n, width = machine.device, machine.tokens, 4096 if machine.is_gpu else 64
    labels = torch.randint(16, (n,), device=device).sort().values
    hot = one_hot(labels, 16).float()
    table = torch.randn(16, 23, device=device, requires_grad=True)
    gradient = torch.randn(n, 23, device=device)
    gather = machine.ms(lambda: table[labels].backward(gradient), 20)
    product = machine.ms(lambda: (hot @ table).backward(gradient), 20)
    log.verdict("gates: gathered / product with one-hot labels", gather / product, "<=", 1.5)
    x = torch.randn(n, width, device=device, dtype=torch.bfloat16)
    out = torch.randn(n, width, device=device, dtype=torch.bfloat16)

    def both(rank: int) -> Callable[[], Tensor]:
        a = torch.randn(rank, width, device=device, dtype=torch.bfloat16)
        b = torch.randn(width, rank, device=device, dtype=torch.bfloat16)
        return lambda: linear(linear(x, a), b)

    log.verdict("products of rank 46 / 48", machine.ms(both(46), 20) / machine.ms(both(48), 20), "<=", 1.1)
    a, b = (torch.randn(*shape, device=device, dtype=torch.bfloat16) for shape in ((16, width), (width, 16)))
    beside = machine.ms(lambda: torch.addmm(out, linear(x, a), b.t()), 20)
    inplace = machine.ms(lambda: out.addmm_(linear(x, a), b.t(), beta=0.5), 20)
    log.verdict("adding an update beside / in place", beside / inplace, "<=", 1.1)


def memory_part(machine: Machine, log: Results) -> None:
    loaded = machine.model(blocks=4)
    rows = rows_of(loaded, machine.tokens).rows
    for kernel in KERNELS if machine.is_gpu else (None,):
        ends = []
        for _ in range(2):
            training = Training.of(loaded, "cgc_lora", packed_with(kernel), lr=1e-3)
            results = [training.step(i, rows) for i in range(2)]
            ends.append(([result.loss for result in results], training.weights()))
        same = ends[0][0] == ends[1][0] and all(torch.equal(ends[0][1][k], ends[1][1][k]) for k in ends[0][1])
        log.verdict(f"same bits when repeated, {kernel or 'the own kernel'}", float(same), ">=", 1)
    if machine.is_gpu:
        halving(machine, log, loaded, rows)
        checkpointing(machine, log, rows)


def halving(machine: Machine, log: Results, loaded: LoadedModel, rows: list[Encoded]) -> None:
    """The loss of a step that runs out of memory and is repeated with halved micro-batches."""

    def measured() -> tuple[float, int]:
        training = Training.of(loaded, "lora_all", packed_with(None))
        return training.step(0, rows).loss, training.steps.micro_tokens

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    rest = torch.cuda.memory_allocated()
    whole, _ = measured()
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((rest + 0.6 * (peak - rest)) / total)
    try:
        halved, micro_tokens = measured()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    log.figure("micro-batch after halving", micro_tokens)
    log.verdict("loss after halving, relative difference", abs(halved - whole) / whole, "<=", 2e-3)


def checkpointing(machine: Machine, log: Results, rows: list[Encoded]) -> None:
    """The peak of a step with recomputed activations over that without."""
    peaks = []
    for on in (False, True):
        loaded = machine.model(blocks=8)
        training = Training.of(loaded, "cgc_lora", packed_with(None))
        checkpoint_activations(training.steps.loaded.model, on)
        torch.cuda.reset_peak_memory_stats()
        training.step(0, rows)
        peaks.append(torch.cuda.max_memory_allocated())
    log.verdict("peak with gradient checkpointing / without", peaks[1] / peaks[0], "<=", 0.6)


def peft_part(machine: Machine, log: Results) -> None:
    names = ["lora_all", "cgc_lora", "moe_lora", "c_poly"]
    plan = BenchPlan(tokens=2 * machine.tokens, tasks=16, rounds=machine.rounds, routes="tokens", threads=1)
    for row in bench(machine.model(), "135m", chosen(names), plan).rows:
        for contender, figures in row.measured.items():
            log.figure(f"{row.method}: seconds of {contender}", figures.seconds)
        for contender, why in row.absent.items():
            log.figure(f"{row.method}: {contender}", why)
        if row.ours_to_peft is not None:
            log.verdict(f"{row.method}: step / PEFT of equal stored rank", row.ours_to_peft.median, "<=", 1.05)
        if row.loop_to_ours is not None:
            log.verdict(f"{row.method}: loop over experts / step", row.loop_to_ours.median, ">=", 5.0)
        kernels = {name: m.kernel_seconds for name, m in row.measured.items() if m.kernel_seconds}
        if {OURS, PEFT} <= kernels.keys():
            log.verdict(f"{row.method}: kernels / PEFT's", kernels[OURS] / kernels[PEFT], "<=", 1.05)
            wall = row.measured[OURS].seconds
            log.verdict(f"{row.method}: wall time / kernels", wall / kernels[OURS], "<=", 1.3)


def large_part(machine: Machine, log: Results) -> None:
    loaded = machine.model(machine.large)
    blocks = sum(layer.weight.numel() for _, layer in iter_linear(loaded.model))
    n = 8192 if machine.is_gpu else 256
    a = torch.randn(n, n, device=machine.device, dtype=loaded.dtype)
    flops = 2 * n**3 / machine.ms(lambda: a @ a, 10) * 1e3
    rows = rows_of(loaded, machine.tokens).rows
    tokens, found = sum(map(len, rows)), {}
    for name in ("lora_all", "cgc_lora"):
        training = Training.of(loaded, name)
        counted = iter(range(10**6))
        found[name] = machine.ms(lambda training=training, counted=counted: training.step(next(counted), rows), 4)
        log.figure(f"{name}: tokens per second", tokens / found[name] * 1e3)
        log.figure(f"{name}: peak bytes", machine.peak_bytes())
    share = 4 * blocks * tokens / found["lora_all"] * 1e3 / flops
    log.verdict("lora_all: share of a large product's FLOP/s", share, ">=", 0.45)
    log.verdict("cgc_lora / lora_all", found["cgc_lora"] / found["lora_all"], "<=", 1.05)


def decoding_part(machine: Machine, log: Results) -> None:
    for shape, sizes in {"135m": (16, 64), machine.large: (16,)}.items():
        loaded = machine.model(shape)
        method = method_class("cgc_lora")()
        assert isinstance(method, AdapterMethod)
        tasks = rows_of(loaded, 64).routes.tasks
        adapter = method.attach(loaded.model, tasks, seed=0)
        factors = adapter.fold(tasks[0])
        for n in sizes if machine.is_gpu else (2,):
            base = ms_per_token(machine, loaded, n, adapter.off)
            folded = ms_per_token(machine, loaded, n, partial(adapter.apply, factors, merge=False))
            log.figure(f"{shape}, {n} sequences: ms per token of the base model", base)
            log.verdict(f"{shape}, {n} sequences: token with a folded adapter / base", folded / base, "<=", 1.1)
        adapter.detach()


def compiled_part(machine: Machine, log: Results) -> None:
    from torch._dynamo.utils import counters

    loaded, ms = machine.model(), {}
    for on in (False, True):
        training = Training.of(loaded, "cgc_lora", Layout(packed=False), compile=on)
        before = counters["stats"]["unique_graphs"]
        for i in range(3):
            training.step(i, rows_of(loaded, machine.tokens, i).rows)
        graphs = counters["stats"]["unique_graphs"] - before
        rows = rows_of(loaded, machine.tokens).rows
        ms[on] = machine.ms(lambda training=training, rows=rows: training.step(9, rows), 4)
    log.verdict("cgc_lora: compiled step / eager step", ms[True] / ms[False], "<=", 0.7)
    log.verdict("graphs after three steps of different lengths", graphs, "<=", 3)


def trainer_part(machine: Machine, log: Results) -> None:
    from training import measure

    options = argparse.Namespace(method="lora_all", batch=32, steps=4, rounds=3, max_length=1024, threads=1, data=None)
    speeds = measure(machine.model(), options).speeds
    for name, least in (("trainer", 2.0), ("trainer+", 1.0)):
        ratio = statistics.median(speeds["ours"]) / statistics.median(speeds[name])
        log.verdict(f"tokens per second / {name}", ratio, ">=", least)


def tests_part(machine: Machine, log: Results) -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/unit"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    log.figure("last line of pytest -m gpu", (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1])
    log.verdict("exit status of pytest -m gpu", done.returncode, "<=", 0)


# What decides most comes first, because the time may end.
PARTS = (
    Part(name="machine", description="speed of a large product and of memory", seconds=10, work=machine_part),
    Part(name="numbers", description="float64 steps as on the CPU", seconds=35, work=numbers_part),
    Part(name="waits", description="waits of the host", seconds=15, work=waits_part, needs_gpu=True),
    Part(name="attention", description="kernels for packed sequences", seconds=60, work=attention_part),
    Part(name="pieces", description="gates, ranks and updates alone", seconds=10, work=pieces_part),
    Part(name="memory", description="equal bits, halving, checkpointing", seconds=30, work=memory_part),
    Part(name="peft", description="training step next to PEFT's LoRA", seconds=70, work=peft_part),
    Part(name="large", description="training of a large model", seconds=90, work=large_part),
    Part(name="decoding", description="decoded tokens", seconds=70, work=decoding_part),
    Part(name="compiled", description="torch.compile", seconds=50, work=compiled_part, needs_gpu=True),
    Part(name="trainer", description="next to transformers' Trainer", seconds=45, work=trainer_part, needs_gpu=True),
    Part(name="tests", description="tests marked gpu", seconds=35, work=tests_part, needs_gpu=True),
)
