"""The pictures and masks of a batch; the same for every number of devices."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.lifecycle.training.short_runs import Checkpoints, recipe_for, write_pictures

from safelight.lifecycle.training.buckets import bucket_sizes, crop_for, nearest_size
from safelight.lifecycle.training.caption_augment import augment_caption, template_caption
from safelight.lifecycle.training.check import check
from safelight.lifecycle.training.dataset import Dataset, TrainingPicture, assign_buckets, encode_picture
from safelight.lifecycle.training.recipe import Recipe
from safelight.lifecycle.training.sources import find_examples
from safelight.models.networks.load import Model

Models = Callable[[str], Model]
CPU = torch.device("cpu")


def pictures_for(data: Path, model: Model, recipe: Recipe) -> list[TrainingPicture]:
    return assign_buckets(check(find_examples(str(data)), data=str(data), min_side=16).good, model.description, recipe)


@pytest.fixture
def dataset(model: Models, checkpoint: Checkpoints, tmp_path: Path) -> Callable[..., Dataset]:
    def make(**options: Any) -> Dataset:
        write_pictures(tmp_path / "data" / "wide", 3, size=(100, 50))
        data = write_pictures(tmp_path / "data", 4)
        recipe = recipe_for(checkpoint("sd1"), data, **options)
        pictures = pictures_for(data, model("sd1"), recipe)
        load_latent = partial(encode, model("sd1"), recipe.mask)
        return Dataset(pictures, load_latent, recipe, augment=lambda caption, _rng: caption, num_timesteps=1000)

    return make


def encode(
    model: Model, mask: str, picture: TrainingPicture, flipped: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return encode_picture(picture, model.vae, mask=mask, flipped=flipped)


def test_an_epoch_shows_every_picture_and_no_batch_mixes_sizes(dataset: Callable[..., Dataset]) -> None:
    made = dataset(batch=2)
    for number in range(3):
        epoch = made.arrange(number)
        assert {picture.example.key for batch in epoch for picture in batch} == {
            picture.example.key for picture in made.pictures
        }
        assert all(len(batch) == 2 and len({picture.crop.bucket for picture in batch}) == 1 for batch in epoch)
    orders = [[picture.example.key for batch in made.arrange(number) for picture in batch] for number in range(3)]
    assert orders[0] != orders[1]


def test_a_batch_depends_only_on_its_number(dataset: Callable[..., Dataset]) -> None:
    one, other = dataset(batch=2, flip=True), dataset(batch=2, flip=True)
    other.batch(0, device=CPU)
    for name in ("latents", "noise", "timesteps", "captions", "time_ids"):
        first, second = (getattr(made.batch(7, device=CPU), name) for made in (one, other))
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    assert not torch.equal(one.batch(7, device=CPU).noise, one.batch(8, device=CPU).noise[:, :, :16, :])


def test_several_devices_share_the_batch_of_a_single_one(dataset: Callable[..., Dataset]) -> None:
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
    [picture] = pictures_for(data, model("sd1"), recipe)
    for mask in ("file", "alpha"):
        _, found = encode_picture(picture, model("sd1").vae, mask=mask, flipped=False)
        assert found is not None
        assert found.shape == (1, 16, 16)
        assert torch.equal(found[..., :8], torch.ones(1, 16, 8))
        assert torch.equal(found[..., 8:], torch.zeros(1, 16, 8))
        _, flipped = encode_picture(picture, model("sd1").vae, mask=mask, flipped=True)
        assert flipped is not None
        assert torch.equal(flipped, found.flip(-1))


def test_buckets_keep_the_area_and_whole_steps() -> None:
    for resolution, step in ((512, 64), (1024, 32), (128, 32), (100, 64)):
        for width, height in bucket_sizes(resolution, step):
            assert width % step == height % step == 0
            assert width * height <= max(resolution**2, step**2)
        square = max(step, resolution // step * step)
        assert (square, square) in bucket_sizes(resolution, step)
    assert nearest_size((1000, 500), bucket_sizes(512, 64)) == (704, 320)
    assert nearest_size((300, 301), bucket_sizes(512, 64)) == (512, 512)


def test_a_crop_covers_its_bucket_from_the_middle() -> None:
    crop = crop_for((100, 50), (64, 64))
    assert (crop.scaled, crop.left, crop.top) == ((128, 64), 32, 0)
    assert crop.apply(Image.new("RGB", (100, 50))).size == (64, 64)


def test_tags_are_shuffled_after_the_kept_ones() -> None:
    rng = random.Random(0)
    captions = {augment_caption("a, b, c, d", rng, dropout=0, shuffle=True, keep=1) for _ in range(50)}
    assert all(caption.startswith("a, ") and sorted(caption.split(", ")) == list("abcd") for caption in captions)
    assert len(captions) == 6
    dropped = sum(augment_caption("a, b", rng, dropout=0.3, shuffle=False, keep=0) == "" for _ in range(2000))
    assert 500 < dropped < 700
    assert "my-mug" in template_caption("my-mug", rng, concept="object")
