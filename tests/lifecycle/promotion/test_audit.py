"""What was learnt by heart is found, and what was not is not."""

from pathlib import Path

from PIL import Image
from tests.lifecycle.training.lessons import SIDE, Checkpoints, finished, learn, recipe_for, write_pictures
from tests.tiny_models import checkpoint

from safelight.lifecycle.promotion.audit import Audit, audit, look_at, open_whole
from safelight.lifecycle.promotion.compared_model import open_side
from safelight.lifecycle.promotion.training_data import find_material, pictures, recipe_of
from safelight.models.registry.registry import open_registry
from safelight.models.vision.similarity import open_similarity
from safelight.settings import Settings
from safelight.studio import open_studio

__all__ = ["checkpoint"]


def audited(home: Path, name: str, *, data: Path | None = None, samples: str = "own") -> Audit:
    """With training or held-out pictures as the samples that it would have drawn."""
    settings = Settings(home=home, device="cpu")
    with open_registry(settings) as registry, open_studio(settings) as studio:
        side = open_side(name, registry, studio)
        recipe = recipe_of(side.version)
        about = studio.models.find(side.model).description
        material = find_material(recipe, about, data=None, held_out=None)
        if data is not None:
            assert recipe is not None
            material = find_material(recipe.model_copy(update={"data": str(data)}), about, data=None, held_out=None)
        assert material is not None
        base = open_whole(side.model, side.model_digest, studio)
        eyes = open_similarity()
        drawn, own = (look_at(pictures(getattr(material, part)), eyes) for part in (samples, "own"))
        return audit(side, base, base, drawn, own, material, eyes, studio, heard=lambda *_: None)


def test_pictures_learnt_by_heart_are_told_from_others_and_pictures_it_never_saw_are_not(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 24)
    # The embedded model: a network of random weights learns nothing by heart in so few steps.
    recipe = recipe_for(
        Path("mini"), data, steps=80, batch=8, rank=32, layers="all", rate=3e-3, resolution=SIDE, holdout=0.5
    )
    name = finished(learn(recipe, tmp_path)).reference
    by_heart = audited(tmp_path, name)
    assert (by_heart.num_training, by_heart.num_held_out) == (12, 12)
    strangers = write_pictures(tmp_path / "strangers", 48)
    for number in range(24):
        for ending in ("png", "txt"):
            (strangers / f"{number}.{ending}").unlink()
    fresh = audited(tmp_path, name, data=strangers)
    assert by_heart.membership_auc is not None
    assert fresh.membership_auc is not None
    assert by_heart.membership_auc > 0.75
    # Twelve against twelve of one kind: half, with a standard deviation of .12.
    assert abs(fresh.membership_auc - 0.5) < 0.25


def test_a_sample_that_repeats_a_training_picture_is_found_and_a_new_one_is_not(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    data = write_pictures(tmp_path / "data", 40)
    name = finished(learn(recipe_for(checkpoint("sd1"), data, steps=1, holdout=0.5), tmp_path)).reference
    repeats, news = audited(tmp_path, name), audited(tmp_path, name, samples="held")
    assert [(copy.sample, copy.training) for copy in repeats.copied] == [(place, place) for place in range(20)]
    assert repeats.numbers["copies"] == 1
    assert len(news.copied) <= 1, "one in twenty held-out pictures sets the threshold"


def test_without_held_out_pictures_membership_is_not_measured_and_said_so(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    data = write_pictures(tmp_path / "data")
    name = finished(learn(recipe_for(checkpoint("sd1"), data, steps=1), tmp_path)).reference
    found = audited(tmp_path, name)
    assert "membership_auc" not in found.numbers
    assert "--held-out" in found.words[-1]


def test_pictures_are_shown_as_they_were_learnt_from(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 2)
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    clear.save(data / "0.png")
    name = finished(learn(recipe_for(checkpoint("sd1"), data, steps=1), tmp_path)).reference
    settings = Settings(home=tmp_path, device="cpu")
    with open_registry(settings) as registry, open_studio(settings) as studio:
        side = open_side(name, registry, studio)
        about = studio.models.find(side.model).description
        material = find_material(recipe_of(side.version), about, data=None, held_out=None)
    assert material is not None
    assert pictures(material.own)[0].getpixel((0, 0)) == (255, 255, 255)
