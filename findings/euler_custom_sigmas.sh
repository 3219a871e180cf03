#!/usr/bin/env bash
# diffusers 0.42.1: three noise levels given as `sigmas` are two steps to EulerDiscreteScheduler and three to
# FlowMatchEulerDiscreteScheduler.
#
# Expected: the same argument of the same method means the same in both: as many steps as levels, down to a clean picture.
# Seen: the flow scheduler appends the final 0 itself. EulerDiscreteScheduler takes the last level for the end of the
# schedule: without a 0 in the list it makes one step fewer, stops at the last level, and returns a picture with that much
# noise in it, without a warning. UniPCMultistepScheduler has the argument too and refuses it unless it is configured for flows.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "diffusers==0.42.1" "torch==2.13.0"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import diffusers
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

print("diffusers", diffusers.__version__)
levels = [0.9, 0.6, 0.3]
steps = {}
for kind in (EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler):
    scheduler = kind()
    scheduler.set_timesteps(sigmas=levels)
    steps[kind] = len(scheduler.timesteps), round(float(scheduler.sigmas[-1]), 6)
    print(f"{kind.__name__}: {steps[kind][0]} steps, ends at noise level {steps[kind][1]}")
assert steps[EulerDiscreteScheduler] == (2, 0.3), "changed: Euler appends the final 0, or refuses the list"
assert steps[FlowMatchEulerDiscreteScheduler] == (3, 0.0), "changed: the flow scheduler wants the final 0 too"
try:
    UniPCMultistepScheduler().set_timesteps(sigmas=levels)
except ValueError as error:
    print("UniPCMultistepScheduler:", error)
else:
    raise AssertionError("changed: UniPC takes levels of noise")
print("as seen: one argument, three meanings")
PY
