from pathlib import Path

import pytest

from safelight.errors import InvalidRequest
from safelight.settings import PREFIX, Settings


def test_every_setting_is_an_environment_variable(tmp_path: Path) -> None:
    environment = {
        "SAFELIGHT_HOME": str(tmp_path),
        "SAFELIGHT_BUDGET_MEGAPIXELS": "2.5",
        "SAFELIGHT_PREVIEW_EVERY": "3",
    }
    settings = Settings.from_environment(environment)
    assert (settings.home, settings.budget_megapixels, settings.preview_every) == (tmp_path, 2.5, 3)
    assert settings.blobs.parent == settings.models.parent == settings.cache.parent == tmp_path


def test_what_the_caller_says_goes_before_the_environment() -> None:
    environment = {"SAFELIGHT_DEVICE": "cuda", "SAFELIGHT_PREVIEW_EVERY": "3"}
    settings = Settings.from_environment(environment, device="cpu", preview_every=None)
    assert (settings.device, settings.preview_every) == ("cpu", 3)


def test_variables_of_others_are_left_alone() -> None:
    assert Settings.from_environment({"PATH": "/bin", "SAFELIGHT_NOT_A_SETTING": "1"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "tpu"),
        ("budget_megapixels", "0"),
        ("budget_megapixels", "much"),
        ("max_pixels", "1e12"),
        ("dtype", "int8"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_variable(name: str, value: str) -> None:
    variable = PREFIX + name.upper()
    with pytest.raises(InvalidRequest, match=f"{variable}.*{value}"):
        Settings.from_environment({variable: value})
