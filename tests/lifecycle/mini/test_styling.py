"""The lesson in styles: words for a style lead beyond the truth by as much as was asked, and nothing else changes."""

from pathlib import Path

import pytest
import torch
from tests.lifecycle.training.test_checkpoint import TOY, data
from torch import Tensor, nn
from transformers import CLIPTokenizer

from safelight.lifecycle.mini.denoiser import STYLED, ids_of, load_averaged, new_denoiser, style_change, train_denoiser
from safelight.lifecycle.mini.mini import DenoiserRecipe
from safelight.lifecycle.mini.pictures import DrawnBatch
from safelight.lifecycle.training.checkpoint import load_checkpoint
from safelight.lifecycle.training.rates import Until
from safelight.models.checkpoints.catalogue import MINI as SHIPPED

__all__ = ["data"]

SAID, BARE = ["an apple, flat style", "an apple", ""], ["an apple", "an apple", ""]


class Words(nn.Module):
    """Says one number for every caption, and another on top of it for the word flat."""

    def __init__(self, flat: int) -> None:
        super().__init__()
        self.flat = flat
        self.always, self.styled = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.1))

    def forward(self, ids: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        is_flat = (ids == self.flat).any(dim=1).float().view(-1, 1, 1, 1)
        return (self.always + self.styled * is_flat).expand_as(noisy)


@pytest.fixture
def words() -> tuple[Words, CLIPTokenizer]:
    tokenizer = CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer")
    return Words(int(ids_of(tokenizer, ["flat"])[0, 1])), tokenizer


def change(network: Words, tokenizer: CLIPTokenizer, predicted: Tensor, *, timestep: int = 0) -> Tensor:
    drawn, steps = DrawnBatch(torch.zeros_like(predicted), SAID, BARE), torch.full((len(SAID),), timestep)
    noisy = torch.zeros_like(predicted)
    return style_change(
        network, tokenizer, drawn, slice(None), predicted=predicted, noisy=noisy, timesteps=steps, below=350
    )


def test_style_change_is_zero_without_style_words_and_above_the_timestep(words: tuple[Words, CLIPTokenizer]) -> None:
    network, tokenizer = words
    predicted = network(ids_of(tokenizer, SAID), torch.zeros(3, 4, 2, 2), torch.zeros(3))
    found = change(network, tokenizer, predicted)
    assert found[0].unique().tolist() == [pytest.approx(0.1)]
    assert not found[1:].any()
    assert not found.requires_grad
    assert torch.equal(change(network, tokenizer, predicted, timestep=349), found)
    assert not change(network, tokenizer, predicted, timestep=350).any()


def test_style_lead_multiplies_the_style_change_by_a_known_factor(words: tuple[Words, CLIPTokenizer]) -> None:
    """The truth is 1 for the flat apple and 0 for the others; led by .6, it is learnt as 1 / (1 - .6)."""
    network, tokenizer = words
    truth = torch.tensor([1.0, 0.0, 0.0]).view(-1, 1, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.4)
    for _ in range(400):
        predicted = network(ids_of(tokenizer, SAID), torch.zeros(3, 4, 2, 2), torch.zeros(3))
        (predicted - truth - 0.6 * change(network, tokenizer, predicted)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert network.always.item() == pytest.approx(0, abs=1e-3)  # after 400 steps, each a tenth of the way or more
    assert network.styled.item() == pytest.approx(1 / (1 - 0.6), abs=1e-3)


def test_the_text_encoder_stays_as_it_was_and_what_was_learnt_is_exported(data: Path) -> None:
    denoiser = DenoiserRecipe(
        channels=(16, 32), heads=(2, 2), norm_groups=4, batch=4, warmup=1, learns_text=False, style_lead=0.6
    )
    torch.manual_seed(1)
    start = new_denoiser(TOY, None)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    recipe = type(TOY)(text=TOY.text, denoiser=denoiser)
    train_denoiser(recipe, data / "artwork", data, until=Until(steps=3), start=start, state=STYLED)
    assert load_checkpoint(data / "denoiser.pt") is None
    network, step = load_averaged(TOY, data)
    assert step == 3
    changed = {name.split(".")[0] for name, now in network.state_dict().items() if not torch.equal(now, before[name])}
    assert changed == {"unet"}

    train_denoiser(TOY, data / "artwork", data, until=Until(steps=2))
    assert load_averaged(TOY, data)[1] == 2, "the denoiser went on after its lesson"
