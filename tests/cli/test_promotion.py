"""From a trained LoRA to `learnt@production` and back, as a team would do it."""

import json
import shutil
from pathlib import Path

import pytest
from tests.cli.conftest import Call
from tests.lifecycle.training.short_runs import Checkpoints, finished, learn, recipe_for, write_pictures
from tests.test_several_models import change
from tests.tiny_models import checkpoint

__all__ = ["checkpoint"]
QUICK = ("--seeds", "2", "--steps", "1")


@pytest.fixture
def learnt(checkpoint: Checkpoints, home: Path, tmp_path: Path) -> str:
    recipe = recipe_for(checkpoint("sd1"), write_pictures(tmp_path / "data", 8), steps=1, holdout=0.5)
    return finished(learn(recipe, home)).reference


def test_a_version_is_compared_refused_overridden_and_rolled_back(
    safelight: Call, learnt: str, home: Path, tmp_path: Path
) -> None:
    base = str(checkpoint_of(learnt, safelight))
    said = safelight("eval", "compare", base, learnt, *QUICK, "--json")
    report = json.loads(said.stdout)
    assert set(report["policy"]) <= set(report["numbers"])
    assert said.exit_code == (0 if report["passed"] else 1)
    page = Path(report["page"]).read_text()
    assert "a photo, the red apple" in page
    assert page.count("<img") >= 2 * 9
    assert json.loads(Path(report["page"]).with_suffix(".json").read_text())["numbers"] == report["numbers"]
    assert not list((home / "reports").glob("*.drawn")), "deleted once the comparison is complete"

    strict = tmp_path / "strict.toml"
    strict.write_text("[metrics.diversity_ratio]\nmin = 1000.0\n")
    refused = safelight("models", "promote", learnt, *QUICK, "--policy", strict)
    assert refused.exit_code == 2
    assert "diversity_ratio is" in refused.output
    assert "must be at least 1000" in refused.output
    assert safelight("models", "show", "learnt@production").exit_code != 0

    moved = safelight("models", "promote", learnt, *QUICK, "--policy", strict, "--override", "ticket 512")
    assert moved.exit_code == 0, moved.output
    assert "overridden: ticket 512" in moved.output
    assert "learnt@production -> learnt@1" in moved.output
    assert len(list((home / "reports").glob("*.html"))) == 1, "a stored report is not measured again"
    [page] = (home / "reports").glob("*.html")
    assert "must be at least 1000" in page.read_text(), "the page has the verdict of the last policy"
    [turn] = json.loads(safelight("models", "show", learnt, "--json").stdout)["history"]
    assert turn["gate"]["policy"] == {"diversity_ratio": {"min": 1000.0}}
    assert turn["gate"]["numbers"] == report["numbers"]
    assert "overridden: ticket 512" in " ".join(safelight("models", "show", learnt).stdout.split())
    back = safelight("models", "rollback", "learnt")
    assert back.exit_code != 0
    assert "has no earlier version" in back.output


def checkpoint_of(reference: str, safelight: Call) -> str:
    shown = json.loads(safelight("models", "show", reference, "--json").stdout)
    return shown["lineage"]["parents"][0]["name"]


def test_the_report_warns_of_a_lora_drawn_on_another_model_than_it_was_made_for(
    safelight: Call, learnt: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    said = json.loads(safelight("eval", "compare", checkpoint("sd1"), learnt, *QUICK, "--json").stdout)
    assert not any("was made from" in line for line in said["words"])
    other = shutil.copytree(checkpoint("sd1"), tmp_path / "other")
    change(other, 1)
    said = json.loads(safelight("eval", "compare", other, f"{other}+{learnt}", *QUICK, "--json").stdout)
    assert any("learnt@1 was made from" in line for line in said["words"])


def test_an_audit_prints_its_findings_in_sentences(safelight: Call, learnt: str, home: Path) -> None:
    said = safelight("audit", learnt, *QUICK)
    assert said.exit_code == 0, said.output
    [page] = (home / "reports").glob("*.html")
    assert "Samples beside their nearest training pictures" in page.read_text()
    assert "samples are nearer to a training picture" in " ".join(said.stdout.split())
    assert "Area under the curve" in " ".join(said.stdout.split())


def test_refusals_to_compare_give_the_reason(
    safelight: Call, learnt: str, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    safelight("models", "add", checkpoint("sd1"), "--name", "plain")
    for words, why in (
        (("eval", "compare", "mini", "lernt@1"), "learnt"),
        (("audit", "mini"), "name the pictures with --data"),
        (("models", "promote", "plain"), "the origin of plain@1 is not known"),
        (("eval", "compare", "mini+mini", learnt), "is a model, and cannot be added to another"),
        (("eval", "compare", "mini", learnt, "--prompts", str(tmp_path / "none.txt")), "cannot be read"),
        (("eval", "compare", "mini", learnt, "--encoder", str(tmp_path)), "is no CLIP model"),
        (("models", "promote", learnt, "--data", str(tmp_path / "nowhere")), "no such folder"),
    ):
        said = safelight(*words, *QUICK)
        assert said.exit_code != 0, said.output
        assert why in " ".join(said.output.split()), said.output


def test_the_default_policy_is_printed_as_it_is_read(safelight: Call, tmp_path: Path) -> None:
    from safelight.lifecycle.evaluation.gate import DEFAULT_POLICY, read_policy

    path = tmp_path / "policy.toml"
    path.write_text(safelight("models", "policy").stdout)
    assert read_policy(path) == DEFAULT_POLICY
