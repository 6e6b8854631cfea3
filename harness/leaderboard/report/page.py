"""The HTML file: one template, one script, one style sheet, and the data as compressed blocks inside.

A content security policy allows this script and this style sheet, by their hashes, and nothing else: no address, no
inline style, no other script. The data are gzip in base64, so that no text of a model is ever markup; the script prints
them as text nodes only.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from harness.errors import StoreError

_ASSETS: Final = files("harness.leaderboard.report") / "assets"
_BLOCK: Final = re.compile(r'<script type="application/octet-stream" id="([^"]+)">([A-Za-z0-9+/=\s]*)</script>')
_CHINESE: Final = re.compile("[\u3400-\u9fff]")
_VIEWS: Final = (("board", "Board"), ("examples", "Examples"), ("training", "Training"), ("runs", "Runs"))
_SIGNIFICANT: Final = 6  # Numbers are stored with this many digits, more than any of them is printed with.


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page. text: what it prints without its script, by the names that the template uses (``report.text``).

    blocks: compressed data by name, see ``pack``.
    """

    title: str
    text: Mapping[str, Any]
    blocks: Mapping[str, str]


def pack(value: Any) -> str:
    """A JSON value as gzip in base64. Equal values give equal texts."""
    text = json.dumps(_rounded(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    content = text.encode("utf-8", "replace")  # Half of a surrogate pair has no bytes in UTF-8.
    return base64.b64encode(gzip.compress(content, compresslevel=9, mtime=0)).decode("ascii")


def unpack(block: str) -> Any:
    """The inverse of ``pack``. Raises: StoreError for a damaged block."""
    try:
        return json.loads(gzip.decompress(base64.b64decode(block)))
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise StoreError(f"a block of the report is damaged ({error}). Write the report again") from error


def render(page: Page) -> str:
    """The HTML of a page; equal pages give equal texts."""
    from jinja2 import Environment, StrictUndefined

    script, style = _asset("report.js"), _asset("report.css")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    environment.tests["chinese"] = _CHINESE.search
    return environment.from_string(_asset("page.html")).render(
        **page.text,
        title=page.title,
        views=_VIEWS,
        blocks=page.blocks,
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
    )


def blocks_of(html: str) -> dict[str, Any]:
    """The data of a page by the names of their blocks. Raises: StoreError for a damaged block."""
    return {name: unpack(block) for name, block in packed_blocks(html).items()}


def packed_blocks(html: str) -> dict[str, str]:
    """The blocks of a page as they are in the file, by name."""
    return dict(_BLOCK.findall(html))


def without_blocks(html: str) -> str:
    """A page without its data, so that pages of other versions of zlib can be compared."""
    return _BLOCK.sub("", html)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def visible(text: str) -> str:
    """A text with the code points of characters that hide or reorder what follows them, such as U+202E."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"[U+{ord(c):04X}]" for c in text)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
