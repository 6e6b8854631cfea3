"""Everything about this project that only a GPU can show, in one command of less than nine minutes.

    python benchmarks/gpu_check.py                  # needs one CUDA device
    python benchmarks/gpu_check.py --cpu            # the same on toys and a CPU: does the script itself work?
    python benchmarks/gpu_check.py --only memory decoding

Each part runs in a process of its own, so that neither an error of CUDA nor a part without end costs the others. Every
figure and verdict is written to ``--out`` (JSON lines) as soon as it is known. A part that no longer fits into the time
is skipped and says so. The exit status is 1 if a verdict is not passed or a part failed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gpu_parts
from gpu_tools import Machine, Part

BUDGET_SECONDS = 520.0
# A part may take this many times the seconds that are planned for it, if there is time left.
_PATIENCE = 1.5


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A measured value against its threshold. sign: "<=" or ">="."""

    part: str
    what: str
    value: float
    sign: str
    threshold: float
    passed: bool


class Log:
    """The results of one part, written at once. passes: whether verdicts count, which they do not on a CPU."""

    def __init__(self, path: Path, part: str, *, counts: bool) -> None:
        self.path, self.part, self.counts = path, part, counts

    def figure(self, what: str, value: Any) -> None:
        """A value without a threshold."""
        self._write({"part": self.part, "what": what, "value": value})

    def verdict(self, what: str, value: float, sign: str, threshold: float) -> None:
        """A value that must be ``sign`` the threshold; on a CPU it is only a figure, since thresholds are of GPUs."""
        if not self.counts:
            self.figure(what, value)
            return
        passed = value <= threshold if sign == "<=" else value >= threshold
        verdict = Verdict(part=self.part, what=what, value=value, sign=sign, threshold=threshold, passed=passed)
        self._write(asdict(verdict))

    def failed(self, why: str) -> None:
        """The part did not end as it should."""
        self._write({"part": self.part, "failed": why})

    def skipped(self, why: str) -> None:
        """The part was not started, or has nothing to measure here."""
        self._write({"part": self.part, "skipped": why})

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(in_words(line), flush=True)


def in_words(line: dict[str, Any]) -> str:
    """A line of the log for people."""
    if "passed" in line:
        mark = "ok  " if line["passed"] else "FAIL"
        return f"  {mark} {line['what']}: {line['value']:.4g} (must be {line['sign']} {line['threshold']:g})"
    for key in ("failed", "skipped"):
        if key in line:
            return f"  {key}: {line[key]}"
    value = line["value"]
    return f"       {line['what']}: {f'{value:.4g}' if isinstance(value, float) else value}"


def run_part(part: Part, path: Path, cpu: bool) -> None:
    """One part, in this process. Its error is written down and ends the process with status 1."""
    log = Log(path, part.name, counts=not cpu)
    try:
        machine = Machine.find(cpu=cpu)
        if part.needs_gpu and cpu:
            log.skipped("needs a GPU")
        else:
            part.work(machine, log)
    except Exception as error:  # noqa: BLE001 - any error is a result of the check, and the other parts are measured
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:400]
        log.failed(f"{type(error).__name__}: {said} ({Path(last.filename).name}:{last.lineno})")
        sys.exit(1)


def run_all(parts: list[Part], path: Path, *, cpu: bool, budget: float, patience: float = _PATIENCE) -> None:
    """Every part that fits into the time, one after the other.

    Args: budget: seconds for all parts. patience: how many times its planned seconds a part may take.
    """
    # Children are forked from this process, which has imported everything and has not touched CUDA.
    context, started = multiprocessing.get_context("fork"), time.monotonic()
    for part in parts:
        left = budget - (time.monotonic() - started)
        log = Log(path, part.name, counts=not cpu)
        print(f"{part.name}: {part.description}", flush=True)
        if left < part.seconds:
            log.skipped(f"{left:.0f} s are left, and it takes about {part.seconds:.0f} s")
            continue
        child = context.Process(target=run_part, args=(part, path, cpu))
        child.start()
        limit = min(left, part.seconds * patience)
        child.join(limit)
        if child.is_alive():
            child.kill()
            child.join()
            log.failed(f"stopped after {limit:.0f} s")
        elif child.exitcode not in (0, 1):
            log.failed(f"its process ended with status {child.exitcode}")


def summary(path: Path) -> tuple[int, list[str]]:
    """The number of verdicts in a log, and its lines that are not passed, failed or skipped for lack of time."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    verdicts = [line for line in lines if "passed" in line]
    bad = [line for line in lines if "failed" in line or line.get("passed") is False]
    return len(verdicts), [f"{line['part']}: {in_words(line).strip()}" for line in bad]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check.jsonl"), help="log file, replaced if it exists")
    parser.add_argument("--cpu", action="store_true", help="toys on a CPU, without verdicts")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=[part.name for part in gpu_parts.PARTS])
    parser.add_argument("--seconds", type=float, default=BUDGET_SECONDS, help="time for all parts together")
    options = parser.parse_args()
    chosen = [part for part in gpu_parts.PARTS if options.only is None or part.name in options.only]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("", encoding="utf-8")
    patience = math.inf if options.cpu else _PATIENCE  # The planned seconds are those of a GPU.
    run_all(chosen, options.out, cpu=options.cpu, budget=options.seconds, patience=patience)
    n_verdicts, bad = summary(options.out)
    print(f"\n{n_verdicts} verdicts, {len(bad)} not passed; {options.out}")
    for line in bad:
        print(line)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
