import inspect

import diffusers.schedulers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.diffusion.checkpoints import CHECKPOINTS, fits

from safelight.diffusion.samplers import SAMPLERS, SPACINGS, find_sampler
from safelight.diffusion.schedules import schedule_for
from safelight.errors import UnknownSampler, UnsupportedOption

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers on numpy 2


@given(st.sampled_from(sorted(SAMPLERS)), st.sampled_from([str.lower, str.upper, str.title]))
def test_names_are_found_in_any_case(name: str, change: type[str]) -> None:
    assert find_sampler(change(name)) is SAMPLERS[name]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_aliases_are_found(sampler) -> None:
    for alias in sampler.aliases:
        assert find_sampler(alias) is sampler


@pytest.mark.parametrize(
    ("name", "schedule", "found"),
    [
        ("DPM++ 2M", None, "DPM++ 2M"),
        ("DPM++ 2M", "Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M", "karras", "DPM++ 2M Karras"),
        ("DPM++ 2M", "sgm_uniform", "DPM++ 2M SGM Uniform"),
        ("DPM++ 2M", "Uniform", "DPM++ 2M"),
        ("DPM++ 2M", "Automatic", "DPM++ 2M Karras"),
        ("DPM++ 3M SDE", "Automatic", "DPM++ 3M SDE Exponential"),
        ("Euler a", "Automatic", "Euler a"),
        ("DPM++ 2M Karras", "Automatic", "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", "Exponential", "DPM++ 2M Exponential"),
        ("DPM++ 2M Karras", "Uniform", "DPM++ 2M"),
        ("k_dpmpp_2m_ka", None, "DPM++ 2M Karras"),
        ("dpmpp_2m_sde", "karras", "DPM++ 2M SDE Karras"),
        ("euler_ancestral", None, "Euler a"),
        ("uni_pc", None, "UniPC"),
    ],
)
def test_the_spacing_may_come_with_the_name_or_apart(name: str, schedule: str | None, found: str) -> None:
    assert find_sampler(name, schedule).name == found


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownSampler, match=r"did you mean.*'DPM\+\+ 2M Karras'"):
        find_sampler("DPM+ 2M Karas")


def test_an_impossible_spacing_says_what_there_is() -> None:
    with pytest.raises(UnsupportedOption, match="Euler a has: Automatic, Uniform, SGM Uniform"):
        find_sampler("Euler a", "Karras")


def test_no_two_samplers_share_a_name() -> None:
    words = [word for sampler in SAMPLERS.values() for word in (sampler.name, *sampler.aliases)]
    assert len({find_sampler(word).name for word in words}) == len(SAMPLERS)


@pytest.mark.parametrize(
    "sampler", [s for s in SAMPLERS.values() if s.diffusers_class and not s.base], ids=lambda s: s.name
)
def test_every_spacing_that_the_class_can_do_is_offered(sampler) -> None:
    accepted = inspect.signature(getattr(diffusers.schedulers, sampler.diffusers_class).__init__).parameters
    assert set(sampler.options) <= set(accepted)
    can = {spacing for spacing, options in SPACINGS.items() if options.keys() <= accepted.keys()}
    if sampler.kind == "flow":  # the multistep classes space flow sigmas in their own way
        can = set(sampler.spacings) if "use_flow_sigmas" in accepted else can
    if sampler.name in ("LCM", "TCD", "Flow LCM"):  # they take the timesteps they were distilled for
        can = set()
    assert set(sampler.spacings) == can


@pytest.mark.parametrize(
    "sampler", [s for s in SAMPLERS.values() if s.diffusers_class and not s.base], ids=lambda s: s.name
)
def test_the_table_of_samplers_has_correct_noise_and_call_counts(sampler) -> None:
    checkpoint = next(name for name in CHECKPOINTS if fits(sampler, name))
    schedule = schedule_for(sampler, CHECKPOINTS[checkpoint], steps=8)
    assert sampler.stochastic == bool(schedule.draws.any())
    assert len(schedule) in (8 * sampler.calls_per_step, 8 * sampler.calls_per_step - 1, 9)
