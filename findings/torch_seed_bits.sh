#!/usr/bin/env bash
# torch 2.13.0, CPU: a generator takes a seed of 64 bits and reports all of them, and draws by the lowest 32.
#
# Expected: seeds that differ give other numbers, as with numpy's default_rng, which is asked beside it.
# Seen: 5, 5 + 2**32 and 5 + 2**62 give the same numbers; `initial_seed()` tells the three apart. Whoever draws a secret
# seed of 64 bits for a CPU generator, for the noise of differential privacy say, has a secret of 32.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.0"
"$folder/venv/bin/python" - <<'PY'
import numpy
import torch

seeds = [5, 5 + 2**32, 5 + 2**62]
generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
drawn = [torch.randn(4, generator=generator).tolist() for generator in generators]
for seed, generator, numbers in zip(seeds, generators, drawn):
    print(f"torch {torch.__version__} seed {seed:>20} reported {generator.initial_seed():>20}: {numbers}")
others = [numpy.random.default_rng(seed).standard_normal(4).tolist() for seed in seeds]
assert [generator.initial_seed() for generator in generators] == seeds, "the seeds are reported as they were given"
assert drawn[0] == drawn[1] == drawn[2], "changed: the high bits count now"
assert len({tuple(numbers) for numbers in others}) == 3, "numpy tells them apart"
print("as seen: the three seeds draw the same numbers")
PY
