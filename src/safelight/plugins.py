"""Plugins: packages that add effects, samplers and upscalers, by the entry points in their metadata.

    [project.entry-points."safelight.effects"]
    focus = "safelight_focus:Focus"

All that are installed are loaded when a studio opens, and nothing else: no name in a request imports anything.
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar, get_args

from safelight.errors import SafelightError, UnsupportedOption, nearest
from safelight.spec.parts import PinnedPlugin, PluginKind

log = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["found", "ready", "failed", "off"]
"""found: not loaded yet."""


@dataclass(slots=True, kw_only=True)
class Plugin:
    """An entry point of an installed package."""

    kind: PluginKind
    name: str
    package: str
    version: str
    state: State
    problem: str | None = None
    """Why it failed."""
    about: str = ""
    json_schema: dict[str, Any] | None = None
    """Of an effect's entry in `effects`."""
    entry_point: EntryPoint = field(repr=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.package} {self.version}"

    @property
    def unusable(self) -> str:
        """Why it cannot be used, for callers; "" if it can."""
        why = {"off": "is off", "failed": "did not load; `safelight plugins` says why"}
        return f"the {self} {why[self.state]}" if self.state in why else ""


class Plugins:
    """The plugins that are installed, sorted; finding them imports none of them."""

    def __init__(self, *, on: bool = True) -> None:
        found = [
            plugin_of(kind, entry, on=on) for kind in kinds() for entry in entry_points(group=f"safelight.{kind}s")
        ]
        self.all = sorted(found, key=lambda plugin: (plugin.kind, plugin.name, plugin.package))

    def load(self, kind: PluginKind, make: Callable[[Plugin, Any], T]) -> dict[str, T]:
        """Import the plugins of a kind; one that fails keeps its problem, and the others go on.

        Args:
            make: makes what is used of a plugin's object; raises what is wrong with it.
        """
        made: dict[str, T] = {}
        for plugin in self.all:
            if plugin.kind != kind or plugin.state == "off":
                continue
            try:
                if plugin.name in made:
                    raise SafelightError(f"another package has registered the name: {self.named(kind, plugin.name)}")
                loaded = plugin.entry_point.load()
                made[plugin.name] = make(plugin, loaded)
            except (Exception, SystemExit) as error:  # noqa: BLE001  a plugin may fail in any way
                plugin.state = "failed"
                plugin.problem = str(error) if type(error) is SafelightError else f"{type(error).__name__}: {error}"
            else:
                plugin.state, plugin.about = "ready", about(loaded)
        return made

    def named(self, kind: PluginKind, name: str) -> Plugin | None:
        """The plugin of that name that can be used."""
        return next((plugin for plugin in self.of(kind, name) if not plugin.unusable), None)

    def of(self, kind: PluginKind, name: str) -> list[Plugin]:
        return [plugin for plugin in self.all if (plugin.kind, plugin.name) == (kind, name)]

    def pin(self, kind: PluginKind, name: str) -> PinnedPlugin | None:
        """What a spec says of the plugin; None for what comes with safelight."""
        plugin = self.named(kind, name)
        return plugin and PinnedPlugin(kind=kind, name=name, package=plugin.package, version=plugin.version)

    def require(self, kind: PluginKind, name: str) -> None:
        """
        Raises:
            UnsupportedOption: there is no such plugin, or it failed or is off.
        """
        if self.named(kind, name):
            return
        self.require_usable(kind, name)
        known = [plugin.name for plugin in self.all if plugin.kind == kind]
        which = f"{nearest(name, known)}; installed: {', '.join(known) or 'none'}"
        raise UnsupportedOption(field_of(kind, name), f"no plugin adds the {kind} {name!r}{which}")

    def require_usable(self, kind: PluginKind, name: str) -> None:
        """
        Raises:
            UnsupportedOption: a plugin of that name failed or is off.
        """
        for plugin in self.of(kind, name):
            if plugin.unusable:
                raise UnsupportedOption(field_of(kind, name), plugin.unusable)

    def require_same(self, pinned: PinnedPlugin) -> None:
        """
        Raises:
            UnsupportedOption: the package that the plugin of a spec came from is not here, or it failed or is off.
        """
        for plugin in self.of(pinned.kind, pinned.name):
            if plugin.package == pinned.package and not plugin.unusable:
                return
            if plugin.package == pinned.package:
                raise UnsupportedOption(field_of(pinned.kind, pinned.name), plugin.unusable)
        why = f"{pinned.name!r} is of the package {pinned.package} {pinned.version}, which is not installed here"
        raise UnsupportedOption(field_of(pinned.kind, pinned.name), why)

    def differences(self, pinned: Sequence[PinnedPlugin]) -> list[str]:
        """A sentence for each plugin of a spec that is installed in another version."""
        pairs = ((one, self.named(one.kind, one.name)) for one in pinned)
        return [
            f"{one.package} {one.version} added the {one.kind} {one.name!r}, and {here.version} is installed here"
            for one, here in pairs
            if here and here.version != one.version
        ]

    def log_failures(self) -> None:
        for plugin in self.all:
            if plugin.state == "failed":
                log.warning("the %s did not load: %s", plugin, plugin.problem)


def kinds() -> tuple[PluginKind, ...]:
    return get_args(PluginKind)


def plugin_of(kind: PluginKind, entry: EntryPoint, *, on: bool) -> Plugin:
    assert entry.dist is not None
    return Plugin(
        kind=kind,
        name=entry.name,
        package=entry.dist.name or "unknown",
        version=entry.dist.version or "unknown",
        state="found" if on else "off",
        entry_point=entry,
    )


def field_of(kind: PluginKind, name: str) -> str:
    """The field of a request that names it."""
    return f"effects.{name}" if kind == "effect" else kind


def about(loaded: Any) -> str:
    """Its description, or the first line of its docstring."""
    text = getattr(loaded, "description", None) or inspect.cleandoc(loaded.__doc__ or "")
    return str(text).partition("\n")[0]
