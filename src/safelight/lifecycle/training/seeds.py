"""One seed from several numbers. A step's randomness depends only on them, so a resumed run repeats it."""

import numpy as np


def seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
