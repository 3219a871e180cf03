import re
from pathlib import Path
from xml.etree import ElementTree

from safelight.lifecycle.mini.metrics_csv import draw_curve, note, read


def test_what_is_noted_is_read(tmp_path: Path) -> None:
    points = [{"cpu_hours": 0.5, "known": 0.4}, {"cpu_hours": 1.0, "known": 0.3}]
    for point in points:
        note(tmp_path / "curve.csv", point)
    assert read(tmp_path / "curve.csv") == points


def test_a_run_that_goes_on_with_other_numbers_keeps_the_columns(tmp_path: Path) -> None:
    note(tmp_path / "curve.csv", {"step": 1.0, "known": 0.4})
    note(tmp_path / "curve.csv", {"step": 2.0, "loss": 0.9, "known": 0.3})
    assert read(tmp_path / "curve.csv") == [{"step": 1.0, "known": 0.4}, {"step": 2.0, "known": 0.3}]


def test_a_falling_error_is_drawn_falling() -> None:
    points = [{"cpu_hours": float(i), "known": 1.0 / (i + 1), "held_out": 1.2 / (i + 1)} for i in range(4)]
    drawn = ElementTree.fromstring(draw_curve(points, across="cpu_hours", names=("known", "held_out")))
    lines = [element.attrib["points"] for element in drawn.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 2
    for line in lines:
        places = [tuple(map(float, place)) for place in re.findall(r"([\d.]+),([\d.]+)", line)]
        assert places == sorted(places), "to the right, and on a screen down is more"


def test_a_single_point_is_a_picture_too() -> None:
    ElementTree.fromstring(draw_curve([{"cpu_hours": 0.0, "known": 0.4}], across="cpu_hours", names=("known",)))
