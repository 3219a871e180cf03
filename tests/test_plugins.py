"""A package that registers an entry point works with no change here; one that fails is named, and the rest goes on."""

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.cli.conftest import safelight
from tests.fakes import spec_for
from tests.plugin_files import EFFECT, EXAMPLE, ROOT, UPSCALER, built_in_samplers, install, packages, see
from tests.tiny_models import checkpoint, load

from safelight.api import Drawn, draw, generate
from safelight.diffusion import samplers
from safelight.errors import InvalidField, InvalidFields, JobFailed, UnsupportedOption
from safelight.models.backends.denoiser import Conditions
from safelight.models.backends.eager import eager_denoiser
from safelight.models.hooks.hook import EffectRows
from safelight.pipeline import PNG
from safelight.settings import Settings
from safelight.spec import Draft
from safelight.studio import Studio, open_studio

__all__ = ["built_in_samplers", "checkpoint", "packages", "safelight"]
SMALL: dict[str, Any] = {"seed": 7, "steps": 2}


@pytest.fixture(scope="session")
def focus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documented plugin, installed by pip into a folder of its own, without network."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(folder), str(EXAMPLE)], check=True)
    return folder


# The documented example


def test_the_documented_plugin_is_installed_and_draws(focus: Path, tmp_path: Path) -> None:
    """In processes of their own, as a user would."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(focus)])}

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "safelight", *words, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = json.loads(call("plugins"))
    about = {"kind": "effect", "name": "focus", "package": "safelight-focus", "version": "1.0", "state": "ready"}
    assert about.items() <= listed.items()
    assert listed["json_schema"]["properties"]["words"]["maximum"] == 10
    small = ("generate", "a red apple", "--seed", "7", "--steps", "2")
    plain, focused = (json.loads(call(*small, *more)) for more in ((), ("--effect", "focus:words=3")))
    assert Image.open(plain["path"]).tobytes() != Image.open(focused["path"]).tobytes()
    said = json.loads(call("info", focused["path"]))["spec"]
    assert said["effects"] == {"focus": {"words": 3.0, "places": 1.0}}
    assert said["plugins"] == [{"kind": "effect", "name": "focus", "package": "safelight-focus", "version": "1.0"}]


def test_help_imports_no_plugin(packages: Path) -> None:
    install(packages, "loud", "raise SystemExit('imported')", effects={"loud": "Loud"}, samplers={"Loud": "LOUD"})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(packages)])}
    code = "import sys; from safelight.cli.main import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "loud" not in done.stdout.split()


@pytest.fixture
def studio(focus: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Studio]:
    """One that sees the documented plugin."""
    see(focus, monkeypatch)
    with open_studio(Settings(home=home)) as opened:
        yield opened


def test_values_are_checked_by_the_plugins_own_model(studio: Studio) -> None:
    def draw(**values: Any) -> None:
        generate("a red apple", studio=studio, effects={"focus": values}, **SMALL)

    with pytest.raises(InvalidField, match=r"^effects\.focus\.word: no such field; did you mean 'words'\?$"):
        draw(word=2)
    with pytest.raises(InvalidFields, match=r"effects\.focus\.words: .*; effects\.focus\.places: .*less than or equal"):
        draw(words="much", places=11)


def test_no_name_in_a_request_imports_anything(studio: Studio, packages: Path) -> None:
    (packages / "unregistered.py").write_text("")
    with pytest.raises(UnsupportedOption, match=r"effects\.unregistered: no plugin adds .* installed: focus"):
        generate("a red apple", studio=studio, effects={"unregistered": {}}, **SMALL)
    assert "unregistered" not in sys.modules
    for known in ("freeu", "Focus"):
        with pytest.raises(UnsupportedOption, match=f"no plugin adds the effect '{known}'"):
            generate("a red apple", studio=studio, effects={known: {}}, **SMALL)


def test_only_rows_with_the_effect_change(studio: Studio, checkpoint: Any) -> None:
    """The others keep their very bits, as they are in a call that nobody's effect acts in."""
    model = load(checkpoint("sd1"))
    active = studio.effects["focus"].load(spec_for(model), model, {})
    latents, timesteps = torch.randn(3, 4, 8, 8), torch.full((3,), 500.0)
    context = torch.randn(3, 77, model.text_encoders[0].width)
    plain = Conditions(context=context, mask=None, pooled=None, time_ids=None, guidance=None)
    denoise = eager_denoiser(model)

    def draw(*rows: Any) -> torch.Tensor:
        effects = {"focus": EffectRows(active.hook, rows)}
        return denoise(latents, timesteps, Conditions(**{**vars_of(plain), "effects": effects}))

    without = denoise(latents, timesteps, plain)
    mixed = draw(None, (3.0, 1.0), (1.0, 2.0))
    assert torch.equal(mixed[0], without[0])
    assert not torch.equal(mixed[1], without[1])
    assert not torch.equal(mixed[2], without[2])
    assert torch.equal(draw((1.0, 1.0), None, None), without)
    assert torch.equal(denoise(latents, timesteps, plain), without)


def vars_of(conditions: Conditions) -> dict[str, Any]:
    return {name: getattr(conditions, name) for name in ("context", "mask", "pooled", "time_ids", "guidance")}


def test_a_model_that_the_effect_is_not_for_is_refused(studio: Studio, checkpoint: Any, home: Path) -> None:
    shutil.copytree(checkpoint("sd3"), home / "models" / "sd3")
    with pytest.raises(UnsupportedOption, match=r"effects\.focus: this model is no UNet"):
        generate("a red apple", studio=studio, model="sd3", effects={"focus": {}}, **SMALL)


# A picture says which packages it came from


def test_a_picture_is_drawn_again_with_the_plugin_and_not_without(
    focus: Path, tmp_path: Path, safelight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(focus, monkeypatch)
    drawn = safelight("generate", "apple", "--seed", 7, "--steps", 2, "--effect", 'focus:{"places": 0.5}', "--json")
    path = json.loads(drawn.stdout)["path"]
    again = json.loads(safelight("replay", path, "--json").stdout)
    assert (again["identical"], again["notes"]) == (True, [])

    monkeypatch.setenv("SAFELIGHT_PLUGINS", "off")
    off = safelight("replay", path)
    assert (off.exit_code, "'focus' of safelight-focus 1.0 is off" in off.stderr) == (2, True)
    monkeypatch.delenv("SAFELIGHT_PLUGINS")

    sys.path.remove(str(focus))
    without = safelight("replay", path)
    assert without.exit_code == 2
    assert "'focus' is of the package safelight-focus 1.0, which is not installed here" in without.stderr

    newer = Path(shutil.copytree(focus, tmp_path / "newer"))
    metadata = (newer / "safelight_focus-1.0.dist-info").rename(newer / "safelight_focus-1.1.dist-info") / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    see(newer, monkeypatch)
    other = json.loads(safelight("replay", path, "--out", "again", "--json").stdout)
    assert other["identical"]
    assert other["notes"] == ["safelight-focus 1.0 added the effect 'focus', and 1.1 is installed here"]
    [pinned] = json.loads(safelight("info", other["path"], "--json").stdout)["spec"]["plugins"]
    assert pinned["version"] == "1.1"


def test_a_plugin_of_the_same_name_from_another_package_is_not_the_same(packages: Path, studio: Studio) -> None:
    [drawn] = generate("a red apple", studio=studio, effects={"focus": {}}, **SMALL)
    [pinned] = drawn.spec.plugins
    studio.plugins.require_same(pinned)
    with pytest.raises(UnsupportedOption, match=r"of the package unsafe-focus 1\.0, which is not installed"):
        studio.plugins.require_same(pinned.model_copy(update={"package": "unsafe-focus"}))


def test_a_spec_without_plugins_has_the_digest_it_always_had(studio: Studio) -> None:
    plain, focused = (
        generate("a red apple", studio=studio, **SMALL, **more)[0].spec for more in ({}, {"effects": {"focus": {}}})
    )
    assert plain.model_dump(exclude_defaults=True).keys().isdisjoint({"effects", "plugins"})
    assert focused.model_copy(update={"effects": {}, "plugins": ()}).digest() == plain.digest() != focused.digest()


# Those that fail

FAILURES = {
    "ModuleNotFoundError: No module named 'not_there'": ("import not_there", "Glow"),
    "AttributeError: module 'bad' has no attribute 'Glow'": ("", "Glow"),
    "SystemExit: 1": ("raise SystemExit(1)", "Glow"),
    "TypeError: 'int' object is not callable": ("Glow = 3", "Glow"),
    "ValueError: no": ("class Glow:\n  def __init__(self, catalogue): raise ValueError('no')", "Glow"),
    "Glow is no subclass of safelight.models.adapters.effect.Effect": (
        "class Glow:\n  def __init__(self, catalogue): pass",
        "Glow",
    ),
    "it is registered as 'bad', and its name is 'glow'": (EFFECT, "Glow"),
    "Glow.request is no pydantic model": (EFFECT.replace('"glow"', '"bad"').replace("= Request", "= dict"), "Glow"),
    "Glow has no method hook": (EFFECT.replace('"glow"', '"bad"').replace("def hook", "def hok"), "Glow"),
}


@pytest.mark.parametrize("problem", FAILURES)
def test_an_effect_that_fails_is_named_and_the_rest_goes_on(
    problem: str, packages: Path, home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, target = FAILURES[problem]
    install(packages, "bad", code, version="0.3", effects={"bad": target})
    install(packages, "good", EFFECT, effects={"glow": "Glow"})
    see(packages, monkeypatch)
    with caplog.at_level(logging.WARNING), open_studio(Settings(home=home)) as studio:
        found = {plugin.name: (plugin.state, plugin.problem) for plugin in studio.plugins.all}
        assert found == {"bad": ("failed", problem), "glow": ("ready", None)}
        assert caplog.messages == [f"the effect 'bad' of bad 0.3 did not load: {problem}"]
        with pytest.raises(UnsupportedOption, match=r"'bad' of bad 0\.3 did not load; `safelight plugins` says why"):
            generate("apple", studio=studio, effects={"bad": {}}, **SMALL)
        [drawn] = generate("apple", studio=studio, effects={"glow": {}}, **SMALL)
        assert drawn.spec.effects == {"glow": {"strength": 0.5}}


def test_names_of_our_own_and_names_that_come_twice_are_refused(
    packages: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    euler = "from safelight.diffusion.samplers import Sampler\nS = Sampler(name='euler', diffusers_class='', "
    install(packages, "one", EFFECT.replace('"glow"', '"freeu"'), effects={"freeu": "Glow"})
    install(packages, "two", EFFECT, effects={"glow": "Glow"})
    install(packages, "three", EFFECT, effects={"glow": "Glow"})
    install(packages, "four", f"{euler}description='')\nT = 3", samplers={"euler": "S", "Other": "T", "Mine": "S"})
    install(packages, "five", UPSCALER, upscalers={"Lanczos": "Blocks", "realesrgan-x4plus": "Blocks"})
    see(packages, monkeypatch)
    with open_studio(Settings(home=home)) as studio:
        found = {(plugin.package, plugin.name): plugin.problem for plugin in studio.plugins.all}
        with pytest.raises(UnsupportedOption, match=r"sampler: the sampler 'Other' of four 1\.0 did not load"):
            generate("apple", studio=studio, sampler="Other", **SMALL)
        assert generate("apple", studio=studio, sampler="euler", **SMALL)[0].spec.plugins == ()
    assert found == {
        ("one", "freeu"): "one of safelight's own effects has its name",
        ("three", "glow"): None,
        ("two", "glow"): "another package has registered the name: effect 'glow' of three 1.0",
        ("four", "euler"): "another sampler has its name, or an alias of it",
        ("four", "Other"): "it is a int, and no safelight.diffusion.samplers.Sampler",
        ("four", "Mine"): "it is registered as 'Mine', and its name is 'euler'",
        ("five", "Lanczos"): "one of safelight's own upscalers has its name",
        ("five", "realesrgan-x4plus"): "one of safelight's own upscalers has its name",
    }
    assert samplers.find_sampler("euler").diffusers_class == "EulerDiscreteScheduler"


def test_a_failed_plugin_is_listed_and_the_doctor_fails(
    packages: Path, safelight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(packages, "bad", "import not_there", version="0.3", effects={"bad": "Bad"})
    see(packages, monkeypatch)
    shown = safelight("plugins")
    assert shown.exit_code == 0
    assert shown.stdout.split() == (
        "failed effect bad bad 0.3 ModuleNotFoundError: No module named 'not_there'".split()
    )
    result = safelight("doctor", "--json")
    assert result.exit_code == 1
    [finding] = [one for one in json.loads(result.stdout)["findings"] if one["level"] == "fail"]
    assert finding["name"] == "effect bad"
    assert "bad 0.3: ModuleNotFoundError" in finding["found"]
    monkeypatch.setenv("SAFELIGHT_PLUGINS", "off")
    assert safelight("plugins").stdout.split() == "off effect bad bad 0.3".split()
    assert safelight("doctor").exit_code == 0


def test_a_plugin_that_is_off_is_not_imported(packages: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(packages, "quiet", EFFECT, effects={"glow": "Glow"})
    see(packages, monkeypatch)
    with open_studio(Settings(home=home, plugins=False)) as studio:
        assert [plugin.state for plugin in studio.plugins.all] == ["off"]
    assert "quiet" not in sys.modules


def test_a_number_that_is_no_number_is_refused(packages: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not be written into a spec."""
    install(packages, "quiet", EFFECT, effects={"glow": "Glow"})
    see(packages, monkeypatch)
    with open_studio(Settings(home=home)) as studio, pytest.raises(InvalidField, match=r"effects\.glow: .*finite"):
        generate("apple", studio=studio, effects={"glow": {"strength": float("nan")}}, **SMALL)


def test_an_effect_that_fails_in_a_call_fails_its_own_job_alone(
    packages: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(packages, "late", EFFECT.replace("return None", "return 1 / 0"), effects={"glow": "Glow"})
    see(packages, monkeypatch)

    async def draw_both(studio: Studio) -> list[Any]:
        drafts = [Draft(prompt="apple", **SMALL, effects=effects) for effects in ({"glow": {}}, {})]
        drawn = (draw(draft, studio, encoding=PNG, on_event=lambda _event: None) for draft in drafts)
        return await asyncio.gather(*drawn, return_exceptions=True)

    with open_studio(Settings(home=home)) as studio:
        failed, other = asyncio.run(draw_both(studio))
    assert isinstance(failed, JobFailed)
    assert "division by zero" in str(failed)
    assert isinstance(other, Drawn)
