"""An interrupted comparison resumes with the pictures that it has."""

from pathlib import Path

from PIL import Image
from tests.fakes import psnr
from tests.lifecycle.training.short_runs import Checkpoints
from tests.tiny_models import checkpoint

from safelight.lifecycle.promotion.compare import Comparison, draw
from safelight.lifecycle.promotion.compared_model import ComparedModel
from safelight.lifecycle.promotion.prompt_set import ComparisonPrompt
from safelight.settings import Settings
from safelight.studio import open_studio

__all__ = ["checkpoint"]


def test_pictures_drawn_before_an_interrupt_are_not_drawn_again(checkpoint: Checkpoints, tmp_path: Path) -> None:
    name = str(checkpoint("sd1"))
    with open_studio(Settings(home=tmp_path, device="cpu")) as studio:
        compared = ComparedModel(name=name, model=name, model_digest=studio.models.find(name).digest)
        comparison = Comparison(
            before=compared,
            after=compared,
            prompts=(
                ComparisonPrompt(prompt="an apple", neutral=False, judged_as=""),
                ComparisonPrompt(prompt="a pear", neutral=True, judged_as=""),
            ),
            seeds=2,
            steps=1,
            data=None,
            encoder_name="",
            encoder_digest="",
        )
        progress: list[int] = []
        folder = tmp_path / "folder"

        def drawn() -> list[Image.Image]:
            progress.clear()
            return draw(
                compared,
                comparison,
                studio,
                folder=folder,
                on_progress=lambda _what, done, _total: progress.append(done),
            )

        whole = drawn()
        assert progress == [1, 2, 3, 4]
        (folder / "1.png").unlink()
        (folder / "2.png").write_bytes(b"cut off")
        again = drawn()
        assert progress == [3, 4]
        assert [again[place].tobytes() for place in (0, 3)] == [whole[place].tobytes() for place in (0, 3)]
        # A batch of two rounds otherwise than one of four: by one level here and there, which everywhere is 48 dB.
        assert all(psnr(again[place], whole[place]) > 45 for place in (1, 2))
        drawn()
        assert progress == []
