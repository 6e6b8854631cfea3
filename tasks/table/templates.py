"""Prompts and targets from templates over the columns of a line (Jinja2, sandboxed)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from harness.errors import nearest

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

# What a template can raise: wrong operations on values, and recursion. Jinja's own errors are added below.
_OPERATIONS: Final = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class RenderError(Exception):
    """A template cannot be filled with a line; the message is a sentence with the remedy."""


class MissingColumn(RenderError):
    """The line lacks a column that the template uses."""


class _Null(ValueError):
    pass


@dataclass(frozen=True, kw_only=True)
class Template:
    """A compiled template. columns: the names that it uses."""

    text: str
    columns: tuple[str, ...]

    def render(self, line: Mapping[str, Any]) -> str:
        """The text for one line. Raises: MissingColumn; RenderError for any other reason."""
        from jinja2 import TemplateError, UndefinedError

        try:
            return str(_compiled(self.text).render(dict(line)))
        except UndefinedError as error:
            missing = [column for column in self.columns if column not in line]
            if missing:
                raise MissingColumn(no_column(missing[0], line)) from error
            raise RenderError(f"{error}. Correct the template") from error
        except _Null as error:
            null = [column for column in self.columns if line.get(column) is None]
            names = f" of {', '.join(null)}" if null else ""
            example = null[0] if null else "column"
            raise RenderError(f"the value{names} is null. Write {{{{ {example} or '' }}}} to leave it out") from error
        except (TemplateError, *_OPERATIONS) as error:
            raise RenderError(f"{type(error).__name__}: {error}. Correct the template") from error


def template(text: str) -> Template:
    """Compile a template. Raises: jinja2.TemplateSyntaxError."""
    from jinja2 import meta

    columns = meta.find_undeclared_variables(_environment().parse(text))
    _compiled(text)
    return Template(text=text, columns=tuple(sorted(columns)))


def template_problem(text: str) -> str | None:
    """What is wrong with a template, in one line; None for a template that can be compiled and uses a column."""
    from jinja2 import TemplateError

    try:
        compiled = template(text)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        place = f"line {line} of the template: " if line else ""
        return f"{place}{error.message}. A column is written {{{{ name }}}}"
    except RecursionError:
        return "the template is nested too deeply. Simplify it"
    if not compiled.columns:
        return f"{text[:40]!r} uses no column, so it is the same for each line. A column is written {{{{ name }}}}"
    return None


def no_column(name: str, line: Iterable[str]) -> str:
    """``no column 'reveiw'. Did you mean 'review'? The line has …``."""
    columns = [str(column) for column in line]
    known = ", ".join(columns[:12]) + ("…" if len(columns) > 12 else "")
    return f"no column {name!r}.{nearest(name, columns)} The columns are {known or 'none'}"


def _not_null(value: Any) -> Any:
    if value is None:
        raise _Null("null")
    return value


@lru_cache(maxsize=1)
def _environment() -> SandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    # White space as in the chat templates of transformers; the end of a prompt is kept as it is written.
    return SandboxedEnvironment(
        undefined=StrictUndefined,
        finalize=_not_null,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


@lru_cache(maxsize=256)
def _compiled(text: str) -> Any:
    return _environment().from_string(text)
