import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.diffusion.checkpoints import SD1, SD2

from safelight.diffusion.advance import Rows, advance, denoised
from safelight.diffusion.noise import seeded
from safelight.diffusion.schedule import HISTORY
from safelight.diffusion.schedules import schedule_for

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers on numpy 2

positions = st.tuples(
    st.sampled_from(["Euler", "Euler a", "DPM++ 2M", "LMS", "PLMS", "UniPC", "Heun"]), st.integers(0, 9)
)


def gather(chosen: list[tuple[str, int]]) -> Rows:
    return Rows.gather([(schedule_for(name, SD2, steps=10), i) for name, i in chosen])


@given(st.lists(positions, min_size=1, max_size=7), st.integers(0, 6))
def test_an_update_has_the_same_bits_in_any_batch(chosen: list[tuple[str, int]], one: int) -> None:
    one %= len(chosen)
    latents, outputs = (torch.randn(len(chosen), HISTORY, 4, 5, 3, generator=seeded(seed)) for seed in (0, 1))
    noise = torch.randn(len(chosen), 4, 5, 3, generator=seeded(2))
    together = advance(latents, outputs, gather(chosen), noise)
    mine = slice(one, one + 1)
    alone = advance(latents[mine].clone(), outputs[mine].clone(), gather(chosen[mine]), noise[mine].clone())
    assert torch.equal(together[mine], alone)


@given(st.lists(positions, min_size=1, max_size=7))
def test_an_update_equals_the_documented_sum(chosen: list[tuple[str, int]]) -> None:
    rows = gather(chosen)
    latents, outputs = (torch.randn(len(chosen), HISTORY, 4, 5, 3, generator=seeded(seed)) for seed in (0, 1))
    noise = torch.randn(len(chosen), 4, 5, 3, generator=seeded(2))
    before = latents.clone()
    expected = torch.einsum("bk,bkchw->bchw", rows.x.double(), latents.double())
    expected += torch.einsum("bk,bkchw->bchw", rows.m.double(), outputs.double())
    expected += rows.noise.double().view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(
        advance(latents, outputs, rows, noise).double(), expected, rtol=1e-5, atol=1e-5
    )  # float32
    assert torch.equal(latents, before)


def test_rows_name_their_columns() -> None:
    schedule = schedule_for("DPM++ 2M SDE", SD1, steps=6)
    rows = Rows.gather([(schedule, 2), (schedule, 5)])
    for column in ("x", "m", "noise", "timesteps", "input_scale", "denoised_x", "denoised_m"):
        expected = torch.from_numpy(getattr(schedule, column)[[2, 5]]).float()
        assert torch.equal(getattr(rows, column), expected), column
    assert rows.depth == 2
    assert torch.equal(rows.to("cpu").packed, rows.packed)


def test_the_clean_estimate_of_a_batch() -> None:
    rows = gather([("Euler", 3), ("DPM++ 2M", 8)])
    latents, outputs = (torch.randn(2, 4, 3, 3, generator=seeded(seed)) for seed in (0, 1))
    for i in range(2):
        expected = rows.denoised_x[i] * latents[i] + rows.denoised_m[i] * outputs[i]
        torch.testing.assert_close(denoised(latents, outputs, rows)[i], expected)
