"""What all groups of commands share: plain help with examples, errors of one line, completion of keys."""

from __future__ import annotations

import shlex
import sys
from contextvars import ContextVar
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from engine.errors import FAILURES
from engine.examples import epilog

_typed: ContextVar[str | None] = ContextVar("typed", default=None)


def typed_command() -> str | None:
    """The command line as typed, quoted for a shell; None where no command of `diffsiam` is running."""
    return _typed.get()


class Commands(TyperGroup):
    """Commands whose help ends with examples, and whose errors are one line on standard error and an exit
    code of their own.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.parent is None:  # a group within a group sees fewer words
            ctx.meta["diffsiam.typed"] = shlex.join(["diffsiam", *args])
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.epilog is None:
            command.epilog = epilog(cmd_name if ctx.parent is None else f"{self.name} {cmd_name}")
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, (command.help or "").partition("\n\n")[0]) for name, command in named])

    def invoke(self, ctx: Any) -> Any:
        before = _typed.set(ctx.meta["diffsiam.typed"])
        try:
            return super().invoke(ctx)
        except FAILURES as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        finally:
            _typed.reset(before)


def group(about: str | None = None) -> typer.Typer:
    """A group without commands yet. Its help is plain: the same in a terminal, a file and a log, and twice as
    fast.
    """
    return typer.Typer(
        cls=Commands,
        help=about,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"max_content_width": 110},
    )


def complete_name(incomplete: str) -> list[str]:
    """Keys of the config that begin so, for the shell."""
    from engine.config_explain import leaves

    return [key for key in leaves() if key.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """The same, ready for a value."""
    return [f"{key}=" for key in complete_name(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="Keys to override.", autocompletion=complete_key),
]
