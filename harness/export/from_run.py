"""Export a finished run: one task or every task, in one of ``FORMATS``."""

from __future__ import annotations

import importlib.util
import logging
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from harness.config.clusters import cluster_with
from harness.config.spec import Precision, RunSpec
from harness.config.template import template_in_words
from harness.errors import NotFoldable, UsageError, unknown
from harness.export.check import PROMPTS, check_with_peft, folded_outputs
from harness.export.folder import new_folder, require_new
from harness.export.formats import DEFAULT, FORMATS, FoldedTask, Format
from harness.export.peft import SERVED_RANKS, BaseName, padded_rank
from harness.method import Adapter, LoRAFactors, Trait, adapter_method
from harness.models.loading import LoadedModel, load_model
from harness.models.quantised import QUANTISATIONS, dequantise
from harness.models.source import locate
from harness.pipeline.reopen import ReopenedRun, reopen
from harness.registry import list_command
from harness.reporting.markdown import cells, escape, heading
from harness.reporting.numbers import counted, or_missing
from harness.store.adapter import load_into
from harness.store.files import write_atomic

LOG: Final = logging.getLogger(__name__)
_LONGEST_NAME: Final = 80


@dataclass(frozen=True, kw_only=True)
class ExportedLoRA:
    """One task's folder. name: the name of the LoRA in a server; rank: the largest of any module."""

    task: str
    name: str
    folder: Path
    rank: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The exported files. command: serves every LoRA from one base model; None if no server supports it."""

    folder: Path
    base: BaseName
    loras: tuple[ExportedLoRA, ...] = ()
    command: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export.

    format: a name in ``FORMATS``. task: one task; None: every task, each in its own folder.
    pad: pad ranks to one that servers support; None: only if every task is exported.
    check: load each exported adapter with PEFT and compare its outputs with the run's, if PEFT is installed.
    data, model: the current location of the run's data and base model, if they have moved.
    """

    format: str = DEFAULT
    task: str | None = None
    pad: bool | None = None
    check: bool = True
    data: str | None = None
    model: str | None = None


def export_run(path: Path, out: Path, options: ExportOptions) -> Exported:
    """Export a finished run.

    Raises: UsageError for an unknown format or task, a run without an adapter, or options that the format does not
        support; NotFoldable; StoreError if ``out`` exists; ModelError if PEFT does not load an adapter as it is.
    """
    form = FORMATS.get(options.format)
    if form is None:
        raise unknown("export format", options.format, FORMATS)
    if not form.is_adapter and (options.task is None or options.pad is not None):
        raise UsageError(f"--format {options.format} writes a whole model for one --task: leave --all and --pad out")
    source = _ExportSource(path, out, options.data, options.model)
    source.checks = form.is_adapter and options.check and _has_peft()
    if options.task is not None:
        return _export_one(source, form, options.task, out, pad=bool(options.pad))
    return _export_all(source, form, out, pad=options.pad is not False)


def _export_one(source: _ExportSource, form: Format, task: str, out: Path, *, pad: bool) -> Exported:
    source.require(task)
    loaded = source.load(form)
    rank = form.write(source.folds(loaded, [task], pad=pad)[task], out)
    if rank is None:
        return Exported(folder=out, base=source.base)
    source.log_notes()
    lora = ExportedLoRA(task=task, name=file_name(task), folder=out, rank=rank)
    return Exported(folder=out, base=source.base, loras=(lora,))


def _export_all(source: _ExportSource, form: Format, out: Path, *, pad: bool) -> Exported:
    """A folder for each task, and a README.md that says how to serve them."""
    loaded = source.load(form)
    names = file_names(source.tasks)
    loras = []
    with new_folder(out) as folder:
        for task, folded in source.folds(loaded, source.tasks, pad=pad).items():
            rank = form.write(folded, folder / names[task]) or 0
            loras.append(ExportedLoRA(task=task, name=names[task], folder=out / names[task], rank=rank))
        serves = not loaded.encoder_decoder and source.source.gguf is None
        text = _readme(source, loras, serve_command(source.base, loras, None) if serves else None)
        write_atomic(folder / "README.md", text.encode())
    source.log_notes()
    command = serve_command(source.base, loras, out.resolve()) if serves else None
    return Exported(folder=out, base=source.base, loras=tuple(loras), command=command)


class _ExportSource:
    """A finished run with an adapter.

    notes: what users of exported adapters need to know. checks: whether exported adapters are loaded and compared.
    """

    def __init__(self, path: Path, out: Path, data: str | None, model: str | None) -> None:
        require_new(out)
        self.finished: ReopenedRun = reopen(path, data, model)
        method = self.finished.resolved.method
        if not method.trains or self.finished.resolved.model is None:
            name = self.finished.resolved.spec.method.name
            raise UsageError(f"{self.finished.run.name} has no adapter to export, because {name} does not train one")
        self.model = self.finished.resolved.model
        self.source = locate(self.model)
        self.tasks = list(self.finished.resolved.spec.suite.tasks)
        self.base = self._base()
        self.notes = self._notes()
        self.checks = False

    def require(self, task: str) -> None:
        if task not in self.tasks:
            raise unknown("task", task, self.tasks, see=list_command(self.finished.resolved.spec.suite.name))

    def log_notes(self) -> None:
        for note in self.notes:
            LOG.info(note)

    def load(self, form: Format) -> LoadedModel:
        """The base model on the CPU. An adapter is folded in its own precision, whatever the model's is.

        A check compares logits, so it needs float32.
        """
        trained = self.finished.resolved.spec.train.precision
        if not form.is_adapter and trained in QUANTISATIONS:
            LOG.info("merged into the dequantised %s weights that the adapter was trained and evaluated on", trained)
            loaded = load_model(self.model, trained, "cpu")
            dequantise(loaded.model)
            return replace(loaded, quantised=None)
        any_precision: Precision = "fp32" if self.source.gguf or self.checks else "bf16"
        return load_model(self.model, form.precision or any_precision, "cpu")

    def folds(self, loaded: LoadedModel, tasks: Sequence[str], *, pad: bool) -> dict[str, FoldedTask]:
        """The folded LoRA of each task, from the adapter of its cluster; the adapters are detached again."""
        resolved, run = self.finished.resolved, self.finished.run
        folds: dict[str, FoldedTask] = {}
        for cluster in dict.fromkeys(cluster_with(resolved.spec, task) for task in tasks):
            adapter = adapter_method(resolved.method).attach(loaded.model, cluster.tasks, seed=resolved.spec.seed)
            load_into(run.of(cluster.name).adapter, adapter)
            for task in (t for t in tasks if t in cluster.tasks):
                factors = self._fold(adapter, task)
                check = self._check(loaded, adapter, task, factors)
                folds[task] = FoldedTask(loaded=loaded, factors=factors, base=self.base, pad=pad, check=check)
            adapter.detach()
        return {task: folds[task] for task in tasks}

    def _check(
        self, loaded: LoadedModel, adapter: Adapter, task: str, factors: Mapping[str, LoRAFactors]
    ) -> Callable[[Path], None] | None:
        if not self.checks:
            return None
        examples = self.finished.resolved.evaluated.of(task)[:PROMPTS]
        expected = folded_outputs(loaded, adapter, factors, [example.prompt for example in examples])
        return lambda folder: check_with_peft(loaded, factors, expected, folder)

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
                "not support it: --format merged writes a whole model"
            )
        elif self.source.folder is not None:
            notes.append(f"the base model is the local folder {self.base.name}, which is needed to load the LoRA")
        if Trait.LABEL_FREE in self.finished.resolved.method.traits:
            name = self.finished.resolved.spec.method.name
            notes.append(f"{name} chooses a LoRA by the prompt; with exported LoRAs the caller chooses one by the task")
        return tuple(notes)


def _has_peft() -> bool:
    """Whether adapters can be checked; a note says so if they cannot."""
    found = importlib.util.find_spec("peft") is not None
    if not found:
        LOG.info(
            "not checked whether PEFT loads the export, because peft is missing: pip install 'mtlora-harness[peft]'"
        )
    return found


def file_name(task: str) -> str:
    """A task's name without characters that are special in a file system, a shell or ``name=path``."""
    return re.sub(r"[^\w.-]+", "_", task)[:_LONGEST_NAME].lstrip(".-") or "_"


def file_names(tasks: Iterable[str]) -> dict[str, str]:
    """``file_name`` of each task; names that are equal (ignoring case) are numbered."""
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
    """The vLLM command that serves all LoRAs from one base model. folder: of the export; None: the current folder.

    ``--max-lora-rank`` must be one of ``SERVED_RANKS``. Raises: HarnessError for a larger rank.
    """
    rank = padded_rank(max(lora.rank for lora in loras), SERVED_RANKS)
    modules = [f"{lora.name}={f'./{lora.name}' if folder is None else folder / lora.name}" for lora in loras]
    words = ["vllm", "serve", base.name, *(["--revision", base.revision] if base.revision else [])]
    return shlex.join([*words, "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", *modules])


def _readme(source: _ExportSource, loras: Sequence[ExportedLoRA], command: str | None) -> str:
    spec, record = source.finished.resolved.spec, source.finished.record
    limits = record.provenance.data.get("limits", {})
    rows = [cells([r.name, escape(r.task), str(r.rank), or_missing(limits.get(r.task))]) for r in loras]
    serve = (
        f"To serve all of them from one base model with vLLM, run in this folder:\n\n```\n{command}\n```\n\n"
        "`model` of a request is then the name of a LoRA below. `--max-loras N` lets one batch hold N of them."
        if command
        else "Load them with peft: `PeftModel.from_pretrained(base, FOLDER)`."
    )
    lines = [
        f"# {spec.method.name} on {spec.suite.name}, one LoRA for each task",
        "",
        f"Run {record.run_id}. Base model: `{source.base.name}`"
        + (f", revision {source.base.revision}." if source.base.revision else "."),
        *(f"{note[0].upper()}{note[1:]}." for note in source.notes),
        "",
        serve,
        "",
        f"Prompts as in training: {_prompts(spec)}. Predictions are decoded greedily, up to this number of tokens:",
        "",
        *heading(["name", "task", "rank", "tokens"], left=("name", "task")),
        *rows,
        "",
    ]
    return "\n".join(lines)


def _prompts(spec: RunSpec) -> str:
    chat = f"the base model's chat template{template_in_words(spec.template)}"
    form = chat if spec.prompt == "chat" else "plain text, without a chat template"
    return form + (f", after {counted(spec.shots, 'in-context example')} of the task" if spec.shots else "")
