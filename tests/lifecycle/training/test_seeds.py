"""The randomness of a run: all bits of its recipe's seed are used, although torch's generator uses only 32."""

import torch

from safelight.lifecycle.training.seeds import seed_of


def test_recipes_whose_seeds_differ_in_their_upper_bits_draw_differently() -> None:
    """They are mixed into each step's seed; a picture's seed, which is not, may have no upper bits (`spec.Seed`)."""
    seeds = [5 + extra for extra in (0, 2**32, 2**33, 2**62)]
    drawn = [torch.randn(4, generator=torch.Generator().manual_seed(seed_of(seed, 3))).tolist() for seed in seeds]
    assert len({tuple(numbers) for numbers in drawn}) == len(seeds)
    alike = [torch.randn(4, generator=torch.Generator().manual_seed(seed)).tolist() for seed in seeds]
    assert len({tuple(numbers) for numbers in alike}) == 1, (
        "of torch 2.13; where it is mended, larger seeds can be taken"
    )
