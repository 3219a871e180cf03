from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from safelight.diffusion.tiling import Tiling

tilings = st.tuples(st.integers(2, 12), st.integers(0, 12)).map(
    lambda t: Tiling(side=t[0], overlap=min(t[1], t[0] - 1))
)
lengths = st.integers(1, 40)


@given(tilings, lengths, lengths)
def test_tiles_joined_are_the_canvas_they_were_cut_from(tiling: Tiling, height: int, width: int) -> None:
    canvas = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    tiles = tiling.cut(canvas)
    corners = tiling.corners(height, width)
    assert tiles.shape == (2 * len(corners), 3, *tiling.size(height, width))
    # A weighted mean of equal numbers, of which float32 rounds each product.
    torch.testing.assert_close(tiling.join(tiles, height, width), canvas, rtol=1e-5, atol=1e-5)


@given(tilings, lengths)
def test_neighbours_share_at_least_the_overlap(tiling: Tiling, length: int) -> None:
    starts = tiling.starts(length)
    assert starts[0] == 0
    assert starts[-1] == max(length - tiling.side, 0)
    assert all(b - a <= tiling.side - tiling.overlap for a, b in pairwise(starts))


def test_tiles_that_differ_are_blended_in_the_overlap() -> None:
    """Two tiles of one number each: from the first to the second in equal steps, without a jump."""
    tiling = Tiling(side=8, overlap=4)
    tiles = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    row = tiling.join(tiles, 8, 12)[0, 0, 0]
    assert row[:4].tolist() == [0] * 4
    assert row[8:].tolist() == [1] * 4
    assert row.diff().max() <= 0.26
