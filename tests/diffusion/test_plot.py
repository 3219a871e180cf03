import pytest
from tests.diffusion.checkpoints import SD1, ZERO_SNR

from safelight.diffusion.plot import plot
from safelight.diffusion.schedules import schedule_for

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers on numpy 2


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("config", [SD1, ZERO_SNR])
def test_any_schedule_can_be_drawn(config: dict, steps: int) -> None:
    image = plot(schedule_for("UniPC Karras", config, steps=steps), "UniPC Karras")
    assert image.size == (900, 926)
    colours = image.getcolors(maxcolors=2**20)
    assert colours is not None
    assert len(colours) > 50  # more than paper
