"""The model that generates: the one loaded in this process (``hf``), or an inference back end (``NAME:ARGUMENTS``)."""

from __future__ import annotations

from dataclasses import dataclass

from harness.config.spec import LOCAL
from harness.errors import UsageError, unknown
from harness.registry import BACKENDS, backend_class, plugins

_SECRETS = ("api_key", "auth_token", "header", "token")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An inference back end as given on the command line: its registered name, and arguments that only it reads."""

    name: str
    arguments: str


def parse_backend(text: str | None) -> Backend | None:
    """The back end of ``NAME:ARGUMENTS``; None for ``hf``. Raises: UsageError for an unknown name, or a secret."""
    if text is None or text == LOCAL:
        return None
    name, _, arguments = text.partition(":")
    known = plugins(BACKENDS)
    if name not in known:
        raise unknown("back end", name, [LOCAL, *known], see="harness list")
    keys = {part.partition("=")[0].strip() for part in arguments.split(",")}
    secret = next((key for key in _SECRETS if key in keys), None)
    if secret is not None:
        raise UsageError(
            f"--backend: do not give {secret} on the command line, it would be saved in the run's record. Set the "
            "environment variable instead (for example OPENAI_API_KEY)"
        )
    return Backend(name=name, arguments=arguments)


def portable_backend(text: str) -> str:
    """``--backend`` with local paths made absolute, so that it means the same in another working directory."""
    backend = parse_backend(text)
    if backend is None or not backend.arguments:
        return text
    return f"{backend.name}:{backend_class(backend.name).portable(backend.arguments)}"
