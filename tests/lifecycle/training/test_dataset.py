"""Which pictures make a batch, and what of them counts; the same for every number of devices."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.lifecycle.training.short_runs import Checkpoints, recipe_for, write_pictures

from safelight.lifecycle.training.buckets import cut_for, nearest_size, sizes
from safelight.lifecycle.training.caption_augment import sentence, worded
from safelight.lifecycle.training.check import check
from safelight.lifecycle.training.dataset import Dataset, Ready, encode_picture, make_ready
from safelight.lifecycle.training.recipe import Recipe
from safelight.lifecycle.training.sources import find_examples
from safelight.models.networks.load import Model

Models = Callable[[str], Model]
CPU = torch.device("cpu")


def ready_for(data: Path, model: Model, recipe: Recipe) -> list[Ready]:
    return make_ready(check(find_examples(str(data)), data=str(data), min_side=16).good, model.description, recipe)


@pytest.fixture
def dataset(model: Models, checkpoint: Checkpoints, tmp_path: Path) -> Callable[..., Dataset]:
    def make(**wishes: Any) -> Dataset:
        write_pictures(tmp_path / "data" / "wide", 3, size=(100, 50))
        data = write_pictures(tmp_path / "data", 4)
        recipe = recipe_for(checkpoint("sd1"), data, **wishes)
        ready = ready_for(data, model("sd1"), recipe)
        latent = partial(encode, model("sd1"), recipe.mask)
        return Dataset(ready, latent, recipe, say=lambda caption, _draw: caption, num_timesteps=1000)

    return make


def encode(model: Model, mask: str, ready: Ready, flipped: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    return encode_picture(ready, model.vae, mask=mask, flipped=flipped)


def test_an_epoch_shows_every_picture_and_no_batch_mixes_sizes(dataset: Callable[..., Dataset]) -> None:
    made = dataset(batch=2)
    for number in range(3):
        epoch = made.arrange(number)
        assert {one.example.key for batch in epoch for one in batch} == {one.example.key for one in made.own}
        assert all(len(batch) == 2 and len({one.cut.bucket for one in batch}) == 1 for batch in epoch)
    orders = [[one.example.key for batch in made.arrange(number) for one in batch] for number in range(3)]
    assert orders[0] != orders[1]


def test_a_batch_follows_from_its_number_alone(dataset: Callable[..., Dataset]) -> None:
    one, other = dataset(batch=2, flip=True), dataset(batch=2, flip=True)
    other.batch(0, device=CPU)
    for name in ("latents", "noise", "timesteps", "captions", "time_ids"):
        first, second = (getattr(made.batch(7, device=CPU), name) for made in (one, other))
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    assert not torch.equal(one.batch(7, device=CPU).noise, one.batch(8, device=CPU).noise[:, :, :16, :])


def test_devices_share_what_one_would_be_shown(dataset: Callable[..., Dataset]) -> None:
    made = dataset(batch=4)
    whole = made.batch(3, device=CPU)
    shares = [made.batch(3, process=process, of=2, device=CPU) for process in range(2)]
    assert [share.count for share in shares] == [2, 2]
    together = torch.stack(
        [latent for pair in zip(*(share.latents for share in shares), strict=True) for latent in pair]
    )
    assert torch.equal(together, whole.latents)
    each = torch.rand(4)
    mean = sum(share.loss(each[process::2]) for process, share in enumerate(shares)) / 2
    torch.testing.assert_close(mean, whole.loss(each))


def test_masks_are_read_from_files_and_from_opacity(model: Models, checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 1)
    kept = Image.new("L", (64, 64))
    kept.paste(255, (0, 0, 32, 64))
    kept.save(data / "0.mask.png")
    clear = Image.open(data / "0.png").convert("RGBA")
    clear.putalpha(kept)
    clear.save(data / "0.png")
    recipe = recipe_for(checkpoint("sd1"), data)
    [one] = ready_for(data, model("sd1"), recipe)
    for mask in ("file", "alpha"):
        _, found = encode_picture(one, model("sd1").vae, mask=mask, flipped=False)
        assert found is not None
        assert found.shape == (1, 16, 16)
        assert torch.equal(found[..., :8], torch.ones(1, 16, 8))
        assert torch.equal(found[..., 8:], torch.zeros(1, 16, 8))
        _, flipped = encode_picture(one, model("sd1").vae, mask=mask, flipped=True)
        assert flipped is not None
        assert torch.equal(flipped, found.flip(-1))


def test_buckets_keep_the_area_and_whole_steps() -> None:
    for resolution, step in ((512, 64), (1024, 32), (128, 32), (100, 64)):
        for width, height in sizes(resolution, step):
            assert width % step == height % step == 0
            assert width * height <= max(resolution**2, step**2)
        square = max(step, resolution // step * step)
        assert (square, square) in sizes(resolution, step)
    assert nearest_size((1000, 500), sizes(512, 64)) == (704, 320)
    assert nearest_size((300, 301), sizes(512, 64)) == (512, 512)


def test_a_cut_covers_its_bucket_from_the_middle() -> None:
    cut = cut_for((100, 50), (64, 64))
    assert (cut.scaled, cut.left, cut.top) == ((128, 64), 32, 0)
    assert cut.apply(Image.new("RGB", (100, 50))).size == (64, 64)


def test_tags_are_shuffled_behind_those_that_stay() -> None:
    draw = random.Random(0)
    said = {worded("a, b, c, d", draw, dropout=0, shuffle=True, keep=1) for _ in range(50)}
    assert all(one.startswith("a, ") and sorted(one.split(", ")) == list("abcd") for one in said)
    assert len(said) == 6
    silent = sum(worded("a, b", draw, dropout=0.3, shuffle=False, keep=0) == "" for _ in range(2000))
    assert 500 < silent < 700
    assert "my-mug" in sentence("my-mug", draw, concept="object")
