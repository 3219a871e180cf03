"""`safelight plugins`: packages that add effects, samplers and upscalers, and whether they loaded."""

import json
from typing import TYPE_CHECKING

import typer

from safelight.cli import options

if TYPE_CHECKING:
    from safelight.plugins import Plugin, Plugins, State
    from safelight.settings import Settings

EXAMPLES = """\
[bold]Examples[/]
  safelight plugins
  safelight plugins --json
  safelight generate "a red apple" --effect focus:words=1.5
  SAFELIGHT_PLUGINS=off safelight generate "a red apple"
"""
COLOURS: "dict[State, str]" = {"ready": "green", "failed": "red", "off": "yellow"}


def plugins(as_json: options.Json = False) -> None:
    """List the installed plugins: kind, name, package, version, and what is wrong with those that failed."""
    from safelight.settings import Settings

    found = loaded_plugins(Settings.from_environment()).all
    for plugin in found:
        typer.echo(json.dumps(to_dict(plugin)) if as_json else line(plugin))
    if not (found or as_json):
        typer.echo('none; a package becomes one by entry points such as "safelight.effects"')


def loaded_plugins(settings: "Settings") -> "Plugins":
    from safelight.models.networks.placement import choose_placement
    from safelight.models.registry.registered_models import open_catalogue
    from safelight.studio import load_plugins

    placement = choose_placement(settings.device, settings.dtype)
    return load_plugins(settings, open_catalogue(settings), placement)[0]


def line(plugin: "Plugin") -> str:
    state = typer.style(f"{plugin.state:<7}", fg=COLOURS.get(plugin.state))
    return (
        f"{state} {plugin.kind:<9} {plugin.name}  {plugin.package} {plugin.version}  {plugin.problem or plugin.about}"
    )


def to_dict(plugin: "Plugin") -> dict[str, object]:
    names = ("kind", "name", "package", "version", "state", "problem", "about", "json_schema")
    return {name: getattr(plugin, name) for name in names}
