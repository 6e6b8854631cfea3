"""The embedded default: small suites and a tiny model, both made for this project."""

from pathlib import Path
from typing import Final

MODEL: Final = Path(__file__).parent / "model"
