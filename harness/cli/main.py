"""The group of commands, its errors, and the exit status."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import click

from harness.cli import affinity, bench, board, export, inspect, new, predict, report, run, score, transfer
from harness.cli.messages import is_main_process, messages_on_stderr
from harness.cli.output import replace_unprintable
from harness.errors import HarnessError, UsageError

_ROOMS = (run, predict, score, transfer, affinity, inspect, new, board, report, export, bench)
_COMMANDS = tuple(command for room in _ROOMS for command in room.COMMANDS)


class _InOrder(click.Group):
    """A group that lists its commands in the order of use instead of the alphabet's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="To start: `harness list`, then `harness run --method NAME --suite NAME`.",
)
@click.version_option(package_name="mtlora-harness")
def cli() -> None:
    """Train and compare multi-task LoRA methods on one frozen language model."""


for _command in _COMMANDS:
    cli.add_command(_command)


def _check_own_packages() -> None:
    """Refuse to start with the ``methods`` or ``tasks`` package of another distribution: the names are common."""
    home = Path(__file__).resolve().parents[2]
    for name in ("methods", "tasks"):
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is None or origin.parent.parent != home:
            raise UsageError(
                f"the package {name!r} is imported from {origin}, but harness needs its own in {home}. Install harness "
                "in a new virtual environment, and start it with the command `harness`, not with python -m"
            )


def main() -> None:
    """The console script: errors as one line on stderr; exit status 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    replace_unprintable()
    try:
        with messages_on_stderr() as handler:
            _check_own_packages()
            cli.main(standalone_mode=False, obj=handler)
            sys.stdout.flush()  # here, so that a full disk is an error with a message
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("interrupted; finished work is saved. Run the same command again to resume.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except HarnessError as error:
        if is_main_process() or not getattr(error, "printed_by_main_only", False):
            click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - the top of the program: every error ends as one line
        from harness.cli.unexpected import describe

        click.echo(f"error: {describe(error, sys.argv[1:])}", err=True)
        sys.exit(1)
