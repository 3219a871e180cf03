"""The flags of `safelight generate`: they come from the fields of `Draft`, and callers' scripts depend on them."""

import json
from pathlib import Path
from typing import Any

from typer.main import get_command

from safelight.cli.main import app

FLAGS = Path(__file__).parent / "generate_flags.json"
"""Written by `python -m tests.cli.test_generate_flags`."""


def flags_of_generate() -> dict[str, Any]:
    """All that a caller can see of a flag but its help text and its place within a panel."""
    command: Any = get_command(app)
    return {" ".join(flag.opts + flag.secondary_opts): seen(flag) for flag in command.commands["generate"].params}


def seen(flag: Any) -> str:
    kind = flag.type_descriptor.annotation
    facts = {
        "name": flag.name,
        "type": getattr(kind, "__name__", str(kind)) + (" again" if flag.multiple else ""),
        "bounds": (flag.min, flag.max),
        "default": flag.default,
        "shown": flag.show_default,
        "metavar": flag.metavar,
        "panel": flag.rich_help_panel,
        "required": flag.required,
    }
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def test_flags_stay_as_they_are() -> None:
    assert flags_of_generate() == json.loads(FLAGS.read_text())


if __name__ == "__main__":
    FLAGS.write_text(json.dumps(dict(sorted(flags_of_generate().items())), indent=1) + "\n")
