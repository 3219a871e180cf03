"""What went wrong, as a line for people or a JSON object for programs, and the exit code that goes with it.

0     done
1     it could not be done (the disk is full, the model is damaged, a check failed)
2     what was asked for cannot be; the message says what can
130   stopped by Ctrl-C
"""

import json
import os
from typing import Any

import typer
from typer.core import TyperGroup

from safelight.errors import InvalidRequest, JobCancelled, SafelightError


class SafelightCommands(TyperGroup):
    """The group of all commands: turns every error into one line on stderr. Typer takes a class only."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[__name__] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SafelightError as error:
            show(error.code, str(error), as_json=ctx.meta[__name__], stopped=isinstance(error, JobCancelled))
            raise typer.Exit(exit_code(error)) from None
        except typer.TyperException as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                raise
            at = getattr(error, "ctx", None)
            where = at.command_path if at else "safelight"
            message = f"{error.format_message().rstrip('.')}; `{where} --help` lists the valid arguments"
            show(InvalidRequest.code, message, as_json=ctx.meta[__name__])
            raise typer.Exit(2) from None


def exit_code(error: SafelightError) -> int:
    match error:
        case JobCancelled():
            return 130
        case InvalidRequest():
            return 2
        case _:
            return 1


def show(code: str, message: str, *, as_json: bool, stopped: bool = False) -> None:
    """One line on stderr."""
    if as_json:
        typer.echo(json.dumps({"error": {"code": code, "message": message}}), err=True)
        return
    line = " ".join(message.split())
    if stopped:
        typer.echo(line, err=True)
    else:
        # Colour is dropped by `echo` where nobody would see it; https://no-color.org is ours to honour.
        label = "Error:" if os.environ.get("NO_COLOR") else typer.style("Error:", fg="red", bold=True)
        typer.echo(f"{label} {line}", err=True)
