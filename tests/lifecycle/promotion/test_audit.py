"""The audit finds memorised pictures, and only these."""

from pathlib import Path

from PIL import Image
from tests.lifecycle.training.short_runs import SIDE, Checkpoints, finished, learn, recipe_for, write_pictures
from tests.tiny_models import checkpoint

from safelight.lifecycle.promotion.audit import Audit, audit, embed, load_float32
from safelight.lifecycle.promotion.compared_model import open_compared_model
from safelight.lifecycle.promotion.training_data import find_comparison_data, open_pictures, recipe_of
from safelight.models.registry.registry import open_registry
from safelight.models.vision.similarity import open_similarity
from safelight.settings import Settings
from safelight.studio import open_studio

__all__ = ["checkpoint"]


def audited(home: Path, name: str, *, location: Path | None = None, samples: str = "training") -> Audit:
    """The audit of a version, with training or held-out pictures in place of its samples."""
    settings = Settings(home=home, device="cpu")
    with open_registry(settings) as registry, open_studio(settings) as studio:
        compared = open_compared_model(name, registry, studio)
        recipe = recipe_of(compared.version)
        description = studio.models.find(compared.model).description
        if location is not None:
            assert recipe is not None
            recipe = recipe.model_copy(update={"data": str(location)})
        data = find_comparison_data(recipe, description, location=None, held_out=None)
        assert data is not None
        base = load_float32(compared.model, compared.model_digest, studio)
        encoder = open_similarity()
        drawn, training = (embed(open_pictures(getattr(data, part)), encoder) for part in (samples, "training"))
        return audit(compared, base, base, drawn, training, data, encoder, studio, on_progress=lambda *_: None)


def test_losses_distinguish_memorised_pictures_from_others_but_not_unseen_ones(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 24)
    # The embedded model: a network of random weights memorises nothing in so few steps.
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
    fresh = audited(tmp_path, name, location=strangers)
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
    repeats, fresh = audited(tmp_path, name), audited(tmp_path, name, samples="held_out")
    assert [(copy.sample, copy.training) for copy in repeats.copies] == [(place, place) for place in range(20)]
    assert repeats.numbers["copies"] == 1
    assert len(fresh.copies) <= 1, "one in twenty held-out pictures sets the threshold"


def test_without_held_out_pictures_the_report_states_that_membership_was_not_measured(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    data = write_pictures(tmp_path / "data")
    name = finished(learn(recipe_for(checkpoint("sd1"), data, steps=1), tmp_path)).reference
    found = audited(tmp_path, name)
    assert "membership_auc" not in found.numbers
    assert "--held-out" in found.findings[-1]


def test_pictures_are_compared_as_the_network_was_trained_on_them(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 2)
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    clear.save(data / "0.png")
    name = finished(learn(recipe_for(checkpoint("sd1"), data, steps=1), tmp_path)).reference
    settings = Settings(home=tmp_path, device="cpu")
    with open_registry(settings) as registry, open_studio(settings) as studio:
        compared = open_compared_model(name, registry, studio)
        description = studio.models.find(compared.model).description
        found = find_comparison_data(recipe_of(compared.version), description, location=None, held_out=None)
    assert found is not None
    assert open_pictures(found.training)[0].getpixel((0, 0)) == (255, 255, 255)
