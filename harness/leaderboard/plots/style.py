"""The style of pictures, light and dark. Equal input gives equal bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


@dataclass(frozen=True, kw_only=True)
class Style:
    """Colours of one version of a picture.

    suffix: of the file's name. paper: the background. ink: text and axes. dot: single markers. around, upwards: colour
    maps for values around 0 and for values from 0 upwards. lines: of several methods.
    """

    suffix: str
    paper: str
    ink: str
    dot: str
    around: str
    upwards: str
    lines: tuple[str, ...]


LIGHT: Final = Style(
    suffix="",
    paper="#ffffff",
    ink="#333333",
    dot="#1f6fb2",
    around="RdBu",
    upwards="Blues",
    lines=("#1f6fb2", "#c2571a", "#2f8f4e", "#8a4fb0", "#c2308a", "#7a6a2b", "#2a8c8c", "#777777"),
)
DARK: Final = Style(
    suffix="-dark",
    paper="#0d1117",
    ink="#c9d1d9",
    dot="#58a6ff",
    around="RdBu",
    upwards="cividis",
    lines=("#58a6ff", "#f0883e", "#56d364", "#bc8cff", "#f778ba", "#d2b94a", "#39c5cf", "#a0a0a0"),
)


@contextmanager
def drawing(style: Style) -> Iterator[None]:
    """A context in which figures are drawn and saved in this style."""
    from cycler import cycler
    from matplotlib import rc_context

    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    papered = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    settings: dict[str, Any] = {
        "svg.hashsalt": "harness",
        "svg.fonttype": "none",
        "axes.prop_cycle": cycler(color=style.lines),
        **dict.fromkeys(inked, style.ink),
        **dict.fromkeys(papered, style.paper),
    }
    with rc_context(settings):
        yield


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """One picture with one pair of axes; sizes in inches."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(width, height), layout="constrained")
    return picture, picture.subplots()


def svg(picture: Figure) -> bytes:
    """The picture as SVG, without date and creator."""
    file = io.BytesIO()
    picture.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def light_and_dark(name: str, draw: Callable[[Style], Figure | None], title: str) -> dict[str, bytes]:
    """The light and the dark version of a picture by file name; empty if ``draw`` returns None."""
    files = {}
    for style in (LIGHT, DARK):
        with drawing(style):
            picture = draw(style)
            if picture is not None:
                picture.suptitle(title, fontsize=9)
                files[f"{name}{style.suffix}.svg"] = svg(picture)
    return files


def escape_dollars(text: str) -> str:
    """Text of unknown origin, with dollars escaped because they would start a formula."""
    return text.replace("$", r"\$")


def legible_colour(image: AxesImage, value: float) -> str:
    """Black or white, whichever is legible on the colour of a value in a picture."""
    red, green, blue, _ = (float(x) for x in image.to_rgba(np.asarray([value]))[0])
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"
