"""A finished run as files that others load: a PEFT LoRA for a task or for each task, or a whole merged model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config.clusters import cluster_with
from harness.errors import NotFoldable, UsageError, unknown
from harness.export.peft import SERVED_RANKS, BaseName, export_lora, export_merged, new_folder, padded_rank, require_new
from harness.method import Adapter, LoRAFactors, Trait, adapter_method
from harness.models.loading import LoadedModel, load_model
from harness.models.source import locate
from harness.pipeline.reopen import ReopenedRun, reopen
from harness.reporting.numbers import MISSING
from harness.store.adapter import load_into
from harness.store.files import write_atomic

_LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class ExportedLoRA:
    """One task's folder. name: what a server calls it; rank: the largest of any module."""

    task: str
    name: str
    folder: Path
    rank: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written. command: serves every LoRA from one base model; None where no server is known to."""

    folder: Path
    base: BaseName
    loras: tuple[ExportedLoRA, ...] = ()
    command: str | None = None
    notes: tuple[str, ...] = ()


def export_task(path: Path, task: str, out: Path, *, pad: bool, data: str | None, model: str | None) -> Exported:
    """Write one task's share of a finished run as a PEFT LoRA.

    Args:
        pad: fill the rank up to one that servers take.
        data, model: where these are now, when they have moved.
    Raises: UsageError for an unknown task or a run without an adapter; NotFoldable; StoreError where ``out`` is taken.
    """
    share = _Share(path, out, data, model)
    share.require(task)
    loaded = share.load()
    factors = next(iter(share.folds(loaded, [task]).values()))
    rank = export_lora(loaded.model, factors, out, pad_to=SERVED_RANKS if pad else None, base=share.base)
    lora = ExportedLoRA(task=task, name=file_name(task), folder=out, rank=rank)
    return Exported(folder=out, base=share.base, loras=(lora,), notes=share.notes)


def export_all(path: Path, out: Path, *, pad: bool, data: str | None, model: str | None) -> Exported:
    """Write every task's share as a PEFT LoRA in a folder of its own, and a README.md that says how to serve them.

    Arguments and errors as ``export_task``.
    """
    share = _Share(path, out, data, model)
    loaded = share.load()
    names = file_names(share.tasks)
    loras = []
    with new_folder(out) as folder:
        for task, factors in share.folds(loaded, share.tasks).items():
            to = SERVED_RANKS if pad else None
            rank = export_lora(loaded.model, factors, folder / names[task], pad_to=to, base=share.base)
            loras.append(ExportedLoRA(task=task, name=names[task], folder=out / names[task], rank=rank))
        serves = not loaded.encoder_decoder and share.source.gguf is None
        text = _readme(share, loras, serve_command(share.base, loras, None) if serves else None)
        write_atomic(folder / "README.md", text.encode())
    command = serve_command(share.base, loras, out.resolve()) if serves else None
    return Exported(folder=out, base=share.base, loras=tuple(loras), command=command, notes=share.notes)


def export_whole(path: Path, task: str, out: Path, *, data: str | None, model: str | None) -> Exported:
    """Write the base model with one task's share merged into its weights, and its tokenizer.

    In float32: a sum in half precision would lose most of a small update. Errors as ``export_task``.
    """
    share = _Share(path, out, data, model)
    share.require(task)
    loaded = load_model(share.model, "fp32", "cpu")
    factors = next(iter(share.folds(loaded, [task]).values()))
    export_merged(loaded.model, factors, loaded.tokenizer, out)
    return Exported(folder=out, base=share.base)


class _Share:
    """A finished run that has something to export. notes: what a person should know about the files."""

    def __init__(self, path: Path, out: Path, data: str | None, model: str | None) -> None:
        require_new(out)
        self.finished: ReopenedRun = reopen(path, data, model)
        method = self.finished.resolved.method
        if not method.trains or self.finished.resolved.model is None:
            name = self.finished.resolved.spec.method.name
            raise UsageError(f"{self.finished.run.name} has no adapter: {name} trains none, there is nothing to export")
        self.model = self.finished.resolved.model
        self.source = locate(self.model)
        self.tasks = list(self.finished.resolved.spec.suite.tasks)
        self.base = self._base()
        self.notes = self._notes()

    def require(self, task: str) -> None:
        if task not in self.tasks:
            raise unknown("task", task, self.tasks, see=f"harness list {self.finished.resolved.spec.suite.name}")

    def load(self) -> LoadedModel:
        """The base model, to hang adapters on: no forward is made, and a fold is of the adapter's own precision."""
        return load_model(self.model, "fp32" if self.source.gguf else "bf16", "cpu")

    def folds(self, loaded: LoadedModel, tasks: Sequence[str]) -> dict[str, Mapping[str, LoRAFactors]]:
        """The folded LoRA of each task, of the adapter of its cluster; the model is bare again afterwards."""
        resolved, run = self.finished.resolved, self.finished.run
        found: dict[str, Mapping[str, LoRAFactors]] = {}
        for cluster in dict.fromkeys(cluster_with(resolved.spec, task) for task in tasks):
            adapter = adapter_method(resolved.method).attach(loaded.model, cluster.tasks, seed=resolved.spec.seed)
            load_into(run.of(cluster.name).adapter, adapter)
            found |= {task: self._fold(adapter, task) for task in tasks if task in cluster.tasks}
            adapter.detach()
        return {task: found[task] for task in tasks}

    def _fold(self, adapter: Adapter, task: str) -> Mapping[str, LoRAFactors]:
        try:
            return adapter.fold(task)
        except NotFoldable as error:
            raise NotFoldable(f"{self.finished.run.name}, {task}: {error}") from error

    def _base(self) -> BaseName:
        source = self.source
        if source.folder is None:
            return BaseName(name=source.label, revision=source.commit)
        place = source.folder if source.gguf is None else source.folder / source.gguf
        return BaseName(name=str(place.resolve()))

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self.source.gguf is not None:
            notes.append(
                f"the base model is the file {self.base.name}: load it with "
                "AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE) before the LoRA. Servers of LoRAs may "
                "not take it: --merge writes a whole model"
            )
        elif self.source.folder is not None:
            notes.append(f"the base model is the local folder {self.base.name}: whoever loads the LoRA needs it")
        if Trait.LABEL_FREE in self.finished.resolved.method.traits:
            name = self.finished.resolved.spec.method.name
            notes.append(f"{name} chooses a LoRA by the prompt; of exported ones the caller chooses by the task")
        return tuple(notes)


def file_name(task: str) -> str:
    """A task's name with nothing in it that a file system, a shell or ``name=path`` would take amiss."""
    return re.sub(r"[^\w.-]+", "_", task)[:_LONGEST_NAME].lstrip(".-") or "_"


def file_names(tasks: Iterable[str]) -> dict[str, str]:
    """``file_name`` of each task; names that would be equal, upper and lower case alike, are numbered."""
    names: dict[str, str] = {}
    taken = {"readme.md"}
    for task in tasks:
        name, n = file_name(task), 1
        while name.lower() in taken:
            n += 1
            name = f"{file_name(task)}-{n}"
        taken.add(name.lower())
        names[task] = name
    return names


def serve_command(base: BaseName, loras: Sequence[ExportedLoRA], folder: Path | None) -> str:
    """One vLLM command that serves all LoRAs from one base. folder: that of the export; None: the current one.

    vLLM keeps room for ``--max-lora-rank``, which is one of ``SERVED_RANKS``. Raises: HarnessError for a larger rank.
    """
    rank = padded_rank(max(lora.rank for lora in loras), SERVED_RANKS)
    modules = [f"{lora.name}={f'./{lora.name}' if folder is None else folder / lora.name}" for lora in loras]
    words = ["vllm", "serve", base.name, *(["--revision", base.revision] if base.revision else [])]
    return shlex.join([*words, "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", *modules])


def _readme(share: _Share, loras: Sequence[ExportedLoRA], command: str | None) -> str:
    spec, record = share.finished.resolved.spec, share.finished.record
    limits = record.provenance.data.get("limits", {})
    rows = [f"| {r.name} | {r.task} | {r.rank} | {limits.get(r.task, MISSING)} |" for r in loras]
    serve = (
        f"All of them from one base model, by vLLM, in this folder:\n\n```\n{command}\n```\n\n"
        "`model` of a request is then the name of a LoRA below. `--max-loras N` lets one batch hold N of them."
        if command
        else "Load them with peft: `PeftModel.from_pretrained(base, FOLDER)`."
    )
    lines = [
        f"# {spec.method.name} on {spec.suite.name}, one LoRA for each task",
        "",
        f"Run {record.run_id}. Base model: `{share.base.name}`"
        + (f", revision {share.base.revision}." if share.base.revision else "."),
        *(f"{note[0].upper()}{note[1:]}." for note in share.notes),
        "",
        serve,
        "",
        f"Prompts as in training: {_prompts(spec.prompt, spec.shots)}. Answers are decoded greedily, up to so many "
        "tokens:",
        "",
        "| name | task | rank | tokens |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _prompts(style: str, shots: int) -> str:
    form = "the base model's chat template" if style == "chat" else "plain text, without a chat template"
    return form + (f", behind {shots} examples of the task" if shots else "")
