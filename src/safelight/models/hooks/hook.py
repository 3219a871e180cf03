"""What is changed inside a network while it is called, row by row: one shape for every kind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from safelight.diffusion.shapes import Latents, PerRow


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInputs:
    """The inputs of one network call, for hooks that call a network of their own with them."""

    latents: Latents
    timesteps: PerRow
    context: Tensor
    """(b, tokens, dim)"""
    mask: Tensor | None
    """(b, tokens) True where a prompt has tokens; None when all are equally long."""
    added: Mapping[str, Tensor] | None
    """SDXL's added conditions, each (b, ...)."""

    def rows(self, index: Tensor, length: int) -> "NetworkInputs":
        """The rows of `index`, (n,), whose prompts are all `length` tokens long: ControlNets take no mask."""
        added = None if self.added is None else {name: part[index] for name, part in self.added.items()}
        return NetworkInputs(
            latents=self.latents[index],
            timesteps=self.timesteps[index],
            context=self.context[index, :length],
            mask=None,
            added=added,
        )


class Hook(Protocol):
    """Belongs to one network, and is not for several threads at once, as the network itself.

    A deep copy of the network copies its forward hooks, which must then find the same object: `__deepcopy__` returns
    itself, and nothing is on while the copy is called.
    """

    def on(self, rows: Sequence[Any], inputs: NetworkInputs) -> AbstractContextManager[Mapping[str, Any]]:
        """Act on the calls of the network inside of the block; yields further arguments of the call.

        `rows` has an entry for each row of the call; None and empty ones leave their row as it is, to the bit.
        """
        ...


@dataclass(frozen=True, slots=True)
class EffectRows:
    """One effect in one network call."""

    hook: Callable[[nn.Module], Hook]
    """Makes the effect's hook for a network; called once for each network."""
    rows: Sequence[Any]
    """For each row of the call, what the hook applies to it; None where the effect does not act."""

    def take(self, index: Sequence[int]) -> "EffectRows":
        return EffectRows(self.hook, [self.rows[row] for row in index])


@contextmanager
def effects_on(
    network: nn.Module, hooks: dict[str, Hook], effects: Mapping[str, EffectRows], inputs: NetworkInputs
) -> Iterator[dict[str, Any]]:
    """Apply all effects to the calls of `network` inside of the block; yields their further arguments.

    `hooks` holds the network's hooks by effect, and gets those that are missing.
    """
    with ExitStack() as stack:
        arguments: dict[str, Any] = {}
        for name, effect in effects.items():
            if not any(effect.rows):  # these rows of the batch have none of it
                continue
            if name not in hooks:
                hooks[name] = effect.hook(network)
            arguments |= stack.enter_context(hooks[name].on(effect.rows, inputs))
        yield arguments
