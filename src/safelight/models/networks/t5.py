"""T5, the text encoder of the transformer families: one sequence of fixed length, and all of its states.

    prompts -> text without weights -> ids, padded to the family's length -> states -> weights -> joined with CLIP's

The padding is encoded too, unmasked, because the networks were trained that way. Weights act on T5's states as on
CLIP's (`encode.py`); `BREAK` is ignored.
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
            CorruptModel: the file is missing, damaged, or not a T5 tokenizer.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CorruptModel(
                f"{file} is missing; where there is only a spiece.model, transformers' T5Tokenizer.from_pretrained(...)"
                ".save_pretrained(...) converts it"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001  the tokenizers package raises nothing more precise
            raise CorruptModel(f"{file} holds no tokenizer: {error}") from None
        backend.no_padding()
        backend.no_truncation()
        end, pad = backend.token_to_id(END), backend.token_to_id(PAD)
        if end is None or pad is None:
            raise CorruptModel(f"{file} belongs to another kind of text encoder: it lacks {END} or {PAD}")
        return T5Tokenizer(backend, end, pad)

    def tokenize(self, prompt: str, length: int) -> Chunk:
        """Return the prompt's tokens, truncated to `length`, with the end token and padding."""
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
    """LoRAs applied to the network, per row of a batch, while it is called."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", Adapters(self.network))

    def states(self, prompts: Sequence[str], length: int, adapted: Sequence[Row] | None = None) -> list[Tensor]:
        """Return states (length, width) for each prompt, all in one call; `adapted` holds the LoRAs of each prompt."""
        network: Any = self.network
        chunks = [self.tokenizer.tokenize(prompt, length) for prompt in prompts]
        ids = torch.tensor([chunk.ids for chunk in chunks], device=network.device)
        with self.adapters.on(adapted):
            states = network(ids).last_hidden_state
        # Copy: a view in the cache would hold the whole batch in memory.
        return [emphasise(state, chunk).clone() for state, chunk in zip(states, chunks, strict=True)]


def append_t5(clip: Conditioning, t5: Tensor) -> Conditioning:
    """Append T5's states (length, width) to CLIP's, which are padded with zeros to T5's width (Stable Diffusion 3)."""
    wide = torch.nn.functional.pad(clip.context, (0, t5.shape[-1] - clip.context.shape[-1]))
    return Conditioning(torch.cat([wide, t5.to(wide)]), clip.pooled)


def t5_only(clip: Conditioning, t5: Tensor) -> Conditioning:
    """Return T5's states (length, width) with CLIP's pooled output (Flux)."""
    return Conditioning(t5, clip.pooled)
