"""Similarity to artwork, and copies of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.errors import InvalidRequest
from safelight.lifecycle.evaluation.judge import open_judge
from safelight.lifecycle.evaluation.similarity import kernel_distance, measure_similarity, read_artwork, share_nearer


def test_the_kernel_distance_within_one_distribution_is_about_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right, other = (torch.randn(400, 16, generator=generator) for _ in range(3))
    # The estimate is unbiased, so of one kind it is as often below zero; over twenty seeds it strayed up to 12.
    assert abs(kernel_distance(left, right)) < 20
    assert kernel_distance(left, other + 1) > 1000


def test_the_kernel_distance_is_the_sum_over_pairs() -> None:
    left, right = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) / 2 + 1) ** 3

    across = sum(k(x, y) for x in left for y in right) / 4
    expected = 1000 * (k(left[0], left[1]) + k(right[0], right[1]) - 2 * across)
    assert kernel_distance(left, right) == pytest.approx(expected)


def test_copies_are_nearer_than_real_neighbours_are() -> None:
    generator = torch.Generator().manual_seed(1)
    training, held = torch.randn(200, 8, generator=generator), torch.randn(51, 8, generator=generator)
    assert share_nearer(training[:20], training, than=held) == 1
    assert share_nearer(held, training, than=held) == pytest.approx(25 / 51)
    assert share_nearer(held + 9, training, than=held) == 0


def test_real_pictures_score_as_real_ones(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    shades = dice.integers(0, 256, (24, 1, 1, 4), dtype=np.uint8).repeat(128, 1).repeat(128, 2)
    np.save(tmp_path / "pictures.npy", shades)
    about = [
        {"key": str(row), "own_colour": row != 23, "concept": f"thing-{row // 3}", "style": "abc"[row % 3]}
        for row in range(24)
    ]
    (tmp_path / "pictures.json").write_text(json.dumps(about))
    (tmp_path / "holdout.json").write_text(json.dumps(["0", "1", "2", "3"]))
    artwork = read_artwork(tmp_path)
    assert (len(artwork.training), len(artwork.held_out)) == (19, 4)
    assert list(artwork.drawings["thing-0"]) == ["a", "b", "c"]
    assert list(artwork.drawings["thing-7"]) == ["a", "b"]
    copied = measure_similarity(artwork.training, artwork, open_judge().features)
    assert (copied.copies_by_features, copied.copies_by_pixels) == (1, 1)
    assert copied.distance == copied.real_distance
    noise = [Image.fromarray(dice.integers(0, 256, (128, 128, 3), dtype=np.uint8)) for _ in range(8)]
    assert measure_similarity(noise, artwork, open_judge().features).distance > copied.distance


def test_the_error_for_a_folder_without_artwork_explains_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="safelight train scratch artwork"):
        read_artwork(tmp_path)
