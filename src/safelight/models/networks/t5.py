"""T5 reads prompts for the transformers: one sequence of a fixed length, and all of its states.

    prompts -> words without their weights -> ids, padded to the family's length -> states -> weights -> beside CLIP's

It reads the padding as well, unmasked, because the networks were trained on that. What weights do to CLIP's states they
do to T5's (`encode.py`); a `BREAK` means nothing to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
from torch import Tensor

from safelight.errors import CorruptModel
from safelight.models.hooks.adapters import Adapters, Row
from safelight.models.networks.encode import Conditioning, emphasise
from safelight.models.networks.tokenize import Chunk
from safelight.prompts.weights import Weighted, parse

if TYPE_CHECKING:
    from transformers import T5EncoderModel

END, PAD = "</s>", "<pad>"


@dataclass(frozen=True, slots=True)
class T5Tokenizer:
    backend: tokenizers.Tokenizer
    end: int
    pad: int

    @staticmethod
    def load(folder: Path) -> "T5Tokenizer":
        """Read `tokenizer.json` with the `tokenizers` package alone.

        Raises:
            CorruptModel: it is missing, damaged, or not of a T5.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CorruptModel(
                f"{file} is missing; where there is only a spiece.model, transformers' T5Tokenizer.from_pretrained(...)"
                ".save_pretrained(...) makes one of it"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001  the tokenizers package raises nothing more precise
            raise CorruptModel(f"{file} holds no tokenizer: {error}") from None
        backend.no_padding()
        backend.no_truncation()
        end, pad = backend.token_to_id(END), backend.token_to_id(PAD)
        if end is None or pad is None:
            raise CorruptModel(f"{file} is of another kind of text encoder: it knows no {END} or no {PAD}")
        return T5Tokenizer(backend, end, pad)

    def read(self, prompt: str, length: int) -> Chunk:
        """The first tokens of a prompt that there is room for, the end, and padding."""
        ids: list[int] = []
        weights: list[float] = []
        for piece in parse(prompt):
            if isinstance(piece, Weighted):
                found = self.backend.encode(piece.text, add_special_tokens=False).ids
                ids += found
                weights += [piece.weight] * len(found)
        ids, weights = ids[: length - 1], weights[: length - 1]
        padding = length - 1 - len(ids)
        return Chunk(
            ids=(*ids, self.end, *[self.pad] * padding),
            weights=(*weights, 1.0, *[1.0] * padding),
        )


@dataclass(frozen=True, slots=True)
class T5:
    tokenizer: T5Tokenizer
    network: "T5EncoderModel"
    adapters: Adapters = field(init=False, repr=False, compare=False)
    """What is applied to the network, row by row, while it is called."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", Adapters(self.network))

    def states(self, prompts: Sequence[str], length: int, adapted: Sequence[Row] | None = None) -> list[Tensor]:
        """(length, width) for each prompt, all in one call; `adapted` is what is applied for each."""
        network: Any = self.network
        chunks = [self.tokenizer.read(prompt, length) for prompt in prompts]
        ids = torch.tensor([chunk.ids for chunk in chunks], device=network.device)
        with self.adapters.on(adapted):
            states = network(ids).last_hidden_state
        # A copy, or a cached prompt would keep the whole batch in memory.
        return [emphasise(state, chunk).clone() for state, chunk in zip(states, chunks, strict=True)]


def joined(clip: Conditioning, t5: Tensor) -> Conditioning:
    """CLIP's states, made as wide as T5's with zeros, and then T5's (Stable Diffusion 3)."""
    wide = torch.nn.functional.pad(clip.context, (0, t5.shape[-1] - clip.context.shape[-1]))
    return Conditioning(torch.cat([wide, t5.to(wide)]), clip.pooled)


def alone(clip: Conditioning, t5: Tensor) -> Conditioning:
    """T5's states, and CLIP's word on the whole prompt (Flux)."""
    return Conditioning(t5, clip.pooled)
