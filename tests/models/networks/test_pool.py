import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S
from tests.tiny_models import CPU

from safelight.errors import CorruptModel, InvalidRequest, UnknownModel
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.networks import pool as module
from safelight.models.networks.pool import ModelPool


@pytest.fixture
def pool(checkpoint: Callable[[str], Path], tmp_path: Path) -> ModelPool:
    for kind in ("sd1", "sdxl"):
        shutil.copytree(checkpoint(kind), tmp_path / "models" / kind)
    return ModelPool(Catalogue(tmp_path), CPU)


def test_a_model_is_found_by_name_and_pinned_by_digest(pool: ModelPool) -> None:
    found = pool.find("sd1")
    assert found.path.name == "sd1"
    assert len(found.digest) == 64
    assert pool.get("sd1", found.digest).digest == found.digest


def test_other_weights_under_the_same_name_are_refused(pool: ModelPool) -> None:
    with pytest.raises(InvalidRequest, match=r"'sd1' has digest .* here, but 0000000000 in the spec"):
        pool.get("sd1", "0" * 64)


def test_a_model_requested_by_many_threads_is_loaded_once(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    plain = module.load_model
    monkeypatch.setattr(module, "load_model", lambda *a, **k: loads.append(k["name"]) or plain(*a, **k))
    digest = pool.find("sd1").digest
    models = []
    threads = [threading.Thread(target=lambda: models.append(pool.get("sd1", digest))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["sd1"]
    assert len({id(model) for model in models}) == 1


def test_a_slow_model_does_not_block_other_models(pool: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    plain = Catalogue.listed

    def slow(self: Catalogue, name: str) -> Path | None:
        if name == "sdxl":
            assert go_on.wait(PATIENCE_S)
        return plain(self, name)

    monkeypatch.setattr(Catalogue, "listed", slow)
    downloading = threading.Thread(target=pool.find, args=("sdxl",))
    downloading.start()
    assert pool.find("sd1").path.name == "sd1"
    assert [found.path.name for found in pool.found.values()] == ["sd1"]
    go_on.set()
    downloading.join()
    assert len(pool.found) == 2


def test_a_model_that_could_not_be_found_is_looked_for_again(pool: ModelPool) -> None:
    index = pool.catalogue.folder() / "sd1" / "unet" / "config.json"
    content = index.read_text()
    index.unlink()
    with pytest.raises(CorruptModel):
        pool.find("sd1")
    index.write_text(content)
    assert pool.find("sd1").path.name == "sd1"


def test_an_unknown_name_suggests_the_nearest(pool: ModelPool) -> None:
    with pytest.raises(UnknownModel, match="did you mean 'sdxl'"):
        pool.find("sdxk")
