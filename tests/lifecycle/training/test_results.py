"""The versions that runs register, with their lineage."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lifecycle.training.short_runs import Checkpoints, finished, learn, recipe_for, write_pictures
from tests.models.registry.files import write_lora
from tests.tiny_models import load

from safelight.errors import InvalidRequest, UnknownModel
from safelight.lifecycle.training.events import Updated
from safelight.lifecycle.training.results import thinned
from safelight.lifecycle.training.train import train
from safelight.models.registry.registry import open_registry
from safelight.models.registry.version import Licence
from safelight.resolve.resolve import resolve
from safelight.settings import Settings
from safelight.spec import Draft
from safelight.studio import open_studio
from safelight.version import __version__

KILLED_AT = (
    "import os, signal; from safelight.cli.main import app; from safelight.models.registry.registry import Registry; "
    "Registry.{moment} = lambda *_args, **_said: os.kill(os.getpid(), signal.SIGKILL)"
)
"""A program that dies there as by kill -9."""


def test_the_version_records_its_lineage(checkpoint: Checkpoints, tmp_path: Path) -> None:
    recipe = recipe_for(
        checkpoint("sd1"), write_pictures(tmp_path / "data"), steps=3, holdout=0.3, prompts=["a photo"], sample_every=2
    )
    news = learn(recipe, tmp_path)
    done = finished(news)
    with open_registry(Settings(home=tmp_path)) as registry:
        version = registry.resolve(done.reference)
    assert (version.reference, version.kind, version.path) == ("learnt@1", "lora", done.path)
    assert version.lineage.parents[0].digest == load(checkpoint("sd1")).digest
    assert version.lineage.dataset_digest == done.lineage["dataset_digest"]
    assert version.lineage.recipe == recipe.model_dump(mode="json")
    went = version.lineage.metrics
    assert went["losses"] == [[item.step, item.loss] for item in news if isinstance(item, Updated)]
    assert went["held_loss"] > 0
    assert [Path(path).name for path in went["samples"]] == ["000002.png", "000003.png"]


def test_two_runs_of_one_name_are_its_versions_1_and_2(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    done = [finished(learn(recipe_for(checkpoint("sd1"), data, seed=seed), tmp_path)) for seed in (1, 2)]
    assert [run.reference for run in done] == ["learnt@1", "learnt@2"]
    assert (tmp_path / "runs/learnt-2/learnt.safetensors").is_file()
    with open_studio(Settings(home=tmp_path, device="cpu")) as studio:
        for name, expected in (("learnt", done[1]), ("learnt@1", done[0]), ("learnt@2", done[1])):
            draft = Draft(prompt=f"a photo <lora:{name}:0.8>", model=str(checkpoint("sd1")))
            [lora] = asyncio.run(resolve(draft, studio)).loras
            assert lora.digest == expected.lineage["digest"]


def test_a_run_killed_before_it_was_registered_registers_when_it_is_run_again(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"))
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    environment = os.environ | {"SAFELIGHT_HOME": str(tmp_path), "SAFELIGHT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    for moment in ("add", "to_version"):  # before anything is copied; after the files and the row are there
        program = f"{KILLED_AT.format(moment=moment)}; app(['train', 'lora', '--recipe', {str(file)!r}])"
        ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (tmp_path / "runs/learnt/result.json").exists()
    news = list(train(recipe, Settings(home=tmp_path, device="cpu"), version=__version__))
    assert not [item for item in news if isinstance(item, Updated)]
    assert finished(news).reference == "learnt@1"


def test_more_steps_make_the_next_version(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data")
    learn(recipe_for(checkpoint("sd1"), data, steps=2), tmp_path)
    more = learn(recipe_for(checkpoint("sd1"), data, steps=3), tmp_path)
    assert [item.step for item in more if isinstance(item, Updated)] == [3]
    assert finished(more).reference == "learnt@2"


def test_a_run_is_not_resumed_with_other_pictures(checkpoint: Checkpoints, tmp_path: Path) -> None:
    recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"))
    learn(recipe, tmp_path)
    write_pictures(tmp_path / "data", 6)
    with pytest.raises(InvalidRequest, match="choose another --out"):
        learn(recipe, tmp_path)
    assert finished(learn(recipe, tmp_path, tmp_path / "more")).reference == "learnt@2"


def test_an_embedding_is_a_version_that_a_prompt_can_name(checkpoint: Checkpoints, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", captions=False)
    done = [
        finished(learn(recipe_for(checkpoint("sd1"), data, "embedding", init="apple", seed=seed), tmp_path))
        for seed in (1, 2)
    ]
    with open_studio(Settings(home=tmp_path, device="cpu")) as studio:

        def named(prompt: str) -> dict[str, str]:
            spec = asyncio.run(resolve(Draft(prompt=prompt, model=str(checkpoint("sd1"))), studio))
            return {embedding.name: embedding.digest for embedding in spec.embeddings}

        assert named("a learnt on a table") == {"learnt": done[1].lineage["digest"]}
        assert named("a Learnt@1, on a table") == {"learnt@1": done[0].lineage["digest"]}
        with pytest.raises(UnknownModel, match="learnt@7"):
            named("a learnt@7")


def test_the_licence_of_the_base_is_inherited(checkpoint: Checkpoints, tmp_path: Path) -> None:
    terms = Licence(id="own-terms", restrictions=("Not for sale.",))
    with open_registry(Settings(home=tmp_path)) as registry:
        base = registry.add(checkpoint("sd1"), name="house", licence=terms)
        recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"))
        recipe = recipe.model_copy(update={"base": "house@1"})
        version = registry.resolve(finished(learn(recipe, tmp_path)).reference)
    assert version.licence == terms
    assert version.lineage.parents == (base.parent(),)


def test_a_name_of_another_kind_is_refused_before_training(checkpoint: Checkpoints, tmp_path: Path) -> None:
    with open_registry(Settings(home=tmp_path)) as registry:
        registry.add(write_lora(tmp_path / "brand.safetensors"), name="learnt")
    recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data"), "full")
    with pytest.raises(InvalidRequest, match="learnt is the name of a lora, but this is a checkpoint"):
        learn(recipe, tmp_path)
    assert not list(tmp_path.rglob("state.pt"))


def test_a_curve_is_thinned_to_means() -> None:
    assert thinned([1.0, 3.0]) == [(1, 1.0), (2, 3.0)]
    points = thinned([float(step) for step in range(250)])
    assert len(points) == 84
    assert points[0] == (3, 1.0)
    assert points[-1] == (250, 249.0)
