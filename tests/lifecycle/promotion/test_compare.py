"""A comparison that was interrupted goes on with the pictures that it has."""

from pathlib import Path

from PIL import Image
from tests.fakes import psnr
from tests.lifecycle.training.lessons import Checkpoints
from tests.tiny_models import checkpoint

from safelight.lifecycle.promotion.compare import Comparison, draw
from safelight.lifecycle.promotion.compared_model import ComparedModel
from safelight.lifecycle.promotion.prompt_set import ComparisonPrompt
from safelight.settings import Settings
from safelight.studio import open_studio

__all__ = ["checkpoint"]


def test_what_was_drawn_before_an_interrupt_is_not_drawn_again(checkpoint: Checkpoints, tmp_path: Path) -> None:
    name = str(checkpoint("sd1"))
    with open_studio(Settings(home=tmp_path, device="cpu")) as studio:
        side = ComparedModel(name=name, model=name, model_digest=studio.models.find(name).digest)
        asked = Comparison(
            before=side,
            after=side,
            questions=(
                ComparisonPrompt(prompt="an apple", neutral=False, judged_as=""),
                ComparisonPrompt(prompt="a pear", neutral=True, judged_as=""),
            ),
            seeds=2,
            steps=1,
            material=None,
            eyes_name="",
            eyes_digest="",
        )
        told: list[int] = []
        kept = tmp_path / "kept"

        def drawn() -> list[Image.Image]:
            told.clear()
            return draw(side, asked, studio, kept=kept, heard=lambda _what, done, _total: told.append(done))

        whole = drawn()
        assert told == [1, 2, 3, 4]
        (kept / "1.png").unlink()
        (kept / "2.png").write_bytes(b"cut off")
        again = drawn()
        assert told == [3, 4]
        assert [again[place].tobytes() for place in (0, 3)] == [whole[place].tobytes() for place in (0, 3)]
        # A batch of two rounds otherwise than one of four: by one level here and there, which everywhere is 48 dB.
        assert all(psnr(again[place], whole[place]) > 45 for place in (1, 2))
        drawn()
        assert told == []
