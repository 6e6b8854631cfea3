"""The embedded sample: small data sets for three suites and a tiny model, all made for this project."""

from pathlib import Path
from typing import Final

MODEL: Final = Path(__file__).parent / "model"
