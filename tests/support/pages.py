"""The pages that users read, and the commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"(?:^<!-- *not run\b(?P<reason>.*?)-->\n+)?^```bash\n(?P<code>.*?)^```$", re.M | re.S)
_INLINE = re.compile(r"`(harness [^`\n]+)`")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of shell commands. reason: why it is not run; None for one that is run."""

    code: str
    line: int
    reason: str | None


def pages() -> list[Path]:
    """README, CONTRIBUTING, the pages of docs/, and that on leaderboards."""
    first = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "leaderboards/README.md")]
    return [*first, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: str) -> list[Block]:
    """The ```bash blocks of a page, in order."""
    return [
        Block(
            code=found["code"],
            line=page.count("\n", 0, found.start("code")),
            reason=None if found["reason"] is None else found["reason"].strip(" :,.\n"),
        )
        for found in _BLOCK.finditer(page)
    ]


def harness_commands(page: str) -> list[str]:
    """Every ``harness …`` command of a page, in blocks and in inline code."""
    code = "\n".join(block.code for block in blocks(page)).replace("\\\n", " ")
    lines = [line.partition("  #")[0].strip() for line in code.splitlines()]
    return [line for line in [*lines, *_INLINE.findall(page)] if line.startswith("harness ")]
