"""Who generates: this process (``hf``), or one of lm-eval's models (``lm-eval:NAME,key=value,…``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.config.spec import LOCAL
from harness.errors import UsageError

_PREFIX = "lm-eval:"


_SECRETS = ("api_key", "auth_token", "header", "token")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One of lm-eval's models. arguments: as typed, ``key=value,…``, which lm-eval itself reads."""

    name: str
    arguments: str

    @property
    def given(self) -> Mapping[str, str]:
        """The arguments by name."""
        pairs = (part.partition("=") for part in self.arguments.split(",") if part)
        return {key.strip(): value.strip() for key, _, value in pairs}


def parse_backend(text: str | None) -> Backend | None:
    """``lm-eval:NAME,key=value,…``; None for ``hf``: the model is loaded here. Raises: UsageError."""
    if text is None or text == LOCAL:
        return None
    name, _, arguments = text.removeprefix(_PREFIX).partition(",")
    if not text.startswith(_PREFIX) or not name:
        raise UsageError(
            f"--backend {text}: expected hf, or lm-eval:NAME,key=value,… such as "
            "lm-eval:local-completions,base_url=http://localhost:8000/v1/completions,model=NAME"
        )
    backend = Backend(name=name, arguments=arguments)
    secret = next((key for key in backend.given if key in _SECRETS), None)
    if secret is not None:
        # the back end stands in the record as it was typed
        raise UsageError(f"--backend: {secret} would stand in the record. Set OPENAI_API_KEY or its like instead")
    return backend


def from_anywhere(text: str) -> str:
    """The back end as typed, with the folder that ``pretrained`` names made absolute."""
    backend = parse_backend(text)
    name = backend.given.get("pretrained", "") if backend else ""
    return (
        text.replace(f"pretrained={name}", f"pretrained={Path(name).resolve()}")
        if name and Path(name).is_dir()
        else text
    )
