import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.diffusion.checkpoints import SD1, SD2, SDXL, diffusers_scheduler, start

from safelight.diffusion import compile as compiler
from safelight.diffusion import schedules as schedule_module
from safelight.diffusion.samplers import SAMPLERS
from safelight.diffusion.schedule import HISTORY, Schedule
from safelight.diffusion.schedules import schedule_for
from safelight.errors import UnsupportedOption

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers on numpy 2


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No table in memory, and a list of the classes compiled."""
    compiled: list[str] = []
    honest = compiler.compile_schedule

    def compile_schedule(class_name: str, **kwargs: object) -> Schedule:
        compiled.append(class_name)
        return honest(class_name, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(compiler, "compile_schedule", compile_schedule)
    schedule_module._cached.cache_clear()
    return compiled


def test_a_table_cannot_be_written_to() -> None:
    schedule = schedule_for("Euler", SD1, steps=4)
    with pytest.raises(ValueError, match="read-only"):
        schedule.x[0, 0] = 2


def test_a_table_comes_back_from_disk_as_it_was(tmp_path: Path, forgetful: list[str]) -> None:
    first = schedule_for("DPM++ 2M Karras", SD1, steps=8, cache=tmp_path)
    schedule_module._cached.cache_clear()
    second = schedule_for("DPM++ 2M Karras", SD1, steps=8, cache=tmp_path)
    assert forgetful == ["DPMSolverMultistepScheduler"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    for name in schedule_module._stored():
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("damage", [b"", b"not a table", None])
def test_a_damaged_file_is_written_anew(tmp_path: Path, forgetful: list[str], damage: bytes | None) -> None:
    schedule_for("DDIM", SD1, steps=3, cache=tmp_path)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    schedule_module._cached.cache_clear()
    assert len(schedule_for("DDIM", SD1, steps=3, cache=tmp_path)) == 3
    assert forgetful == ["DDIMScheduler"] * 2
    assert schedule_module._read(path) is not None


def test_equal_starts_share_a_table(forgetful: list[str]) -> None:
    schedule_for("Euler", SD1, steps=20, strength=0.5)
    schedule_for("Euler", SD1, steps=20, strength=0.52)
    assert len(forgetful) == 1


def test_a_stored_table_needs_no_diffusers(tmp_path: Path) -> None:
    schedule_for("UniPC", SD2, steps=6, cache=tmp_path)
    script = f"""
import sys
from pathlib import Path
from safelight.diffusion.schedules import schedule_for
assert len(schedule_for("UniPC", {SD2!r}, steps=6, cache=Path({str(tmp_path)!r}))) == 6
heavy = {{"diffusers", "transformers", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@given(st.integers(1, 200), st.floats(0, 1, exclude_min=True))
def test_image_to_image_starts_where_diffusers_does(steps: int, strength: float) -> None:
    remaining = max(steps - max(steps - min(int(steps * strength), steps), 0), 0)  # get_timesteps of the pipelines
    if remaining:
        assert steps - schedule_module._first_step(steps, strength) == remaining
    else:
        with pytest.raises(UnsupportedOption, match="leaves no step; use"):
            schedule_module._first_step(steps, strength)


@pytest.mark.parametrize(("steps", "strength"), [(0, 1.0), (-3, 1.0), (10, 0.0), (10, 1.01)])
def test_impossible_counts_and_strengths_are_refused(steps: int, strength: float) -> None:
    with pytest.raises(UnsupportedOption):
        schedule_for("Euler", SD1, steps=steps, strength=strength)


def test_the_strength_a_refusal_asks_for_is_enough() -> None:
    for steps in range(1, 200):
        with pytest.raises(UnsupportedOption) as error:
            schedule_module._first_step(steps, 1e-9)
        schedule_module._first_step(steps, float(str(error.value).split("use ")[1].split()[0]))


def test_the_checkpoints_own_choice_of_sampler_does_not_leak() -> None:
    loud = {**SDXL, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    for name in ("Euler", "DPM++ 2M"):
        plain, same = (schedule_for(name, config, steps=6) for config in (SDXL, loud))
        assert plain is not same or plain.draws.sum() == 0
        np.testing.assert_array_equal(plain.packed, same.packed)


def test_keys_that_describe_the_network_are_used() -> None:
    leading = schedule_for("Euler", SDXL, steps=5)
    assert leading.timesteps.tolist() == [801, 601, 401, 201, 1]
    assert schedule_for("Euler", {**SDXL, "timestep_spacing": "trailing"}, steps=5).timesteps[0] == 999
    assert schedule_for("Euler SGM Uniform", SDXL, steps=5).timesteps[0] == 999


def test_default_values_in_a_config_give_way_to_the_class() -> None:
    """PNDM's default is "leading", Euler's "linspace"; a config saved by diffusers tells a default from a choice."""
    saved = dict(diffusers_scheduler(SAMPLERS["Default"], SD1).config)
    assert saved["timestep_spacing"] == "leading"
    np.testing.assert_array_equal(
        schedule_for("Euler", saved, steps=5).packed, schedule_for("Euler", SD1, steps=5).packed
    )


def test_default_is_the_checkpoints_own_scheduler() -> None:
    schedule = schedule_for("Default", SD1, steps=5)
    theirs = start(diffusers_scheduler(SAMPLERS["Default"], SD1), 5)
    assert schedule.timesteps.tolist() == theirs.tolist()
    np.testing.assert_array_equal(schedule.packed, schedule_for("PLMS", SD1, steps=5).packed)


def test_depth_is_the_history_that_a_row_reads() -> None:
    assert set(schedule_for("Euler", SD1, steps=8).depth.tolist()) == {1}
    assert schedule_for("DPM++ 2M", SD1, steps=20).depth.tolist() == [1, *[2] * 18, 1]
    assert schedule_for("PLMS", SD1, steps=8).depth.max() == HISTORY


# The answer in closed form -------------------------------------------------------------------------------------------


def error_at(name: str, steps: int) -> float:
    """How far the sampler is from the exact probability flow when the data is a Gaussian of variance v.

    Then the best estimate is linear, D(x) = s v / (s^2 v + sigma^2) x, and the flow scales x by the standard deviation
    of its level. Measured before the last row: the step to sigma 0 is first order in every sampler.
    """
    v = 0.25
    schedule = schedule_for(name, SD1, steps=steps)
    spread = np.sqrt(schedule.signal**2 * v + schedule.sigma**2)
    x, m = np.zeros(HISTORY), np.zeros(HISTORY)
    x[0] = spread[0]
    last = np.flatnonzero(schedule.step_of == schedule.steps - 1)[0]
    for i in range(last):
        estimate = schedule.signal[i] * v / spread[i] ** 2 * x[0]
        output = (estimate - schedule.denoised_x[i] * x[0]) / schedule.denoised_m[i]
        m = np.concatenate([[output], m[:-1]])
        x = np.concatenate([[schedule.x[i] @ x + schedule.m[i] @ m], x[:-1]])
    return float(abs(x[0] / spread[last] - 1))


@pytest.mark.parametrize("name", ["Euler Karras", "Heun Karras", "DPM++ 2M Karras", "DPM++ 2S Karras", "DEIS Karras"])
def test_error_falls_with_the_order_of_the_sampler(name: str) -> None:
    coarse, fine = error_at(name, 41), error_at(name, 81)
    observed = np.log(coarse / fine) / np.log(2)
    # Steps are not yet short enough for the limit, and float32 coefficients leave 1e-7.
    assert observed == pytest.approx(SAMPLERS[name].order, abs=0.35)


def test_higher_orders_are_nearer_at_the_same_count() -> None:
    euler, heun, multi, unipc = (error_at(f"{name} Karras", 21) for name in ("Euler", "Heun", "DPM++ 2M", "UniPC"))
    assert max(heun, multi, unipc) < euler / 3
