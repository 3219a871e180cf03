"""The quick import, each time in a fresh process: what it gives and spares, and that it leaves nothing broken."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE_S

QUICK = "from safelight.models.networks.networks import denoiser_class, network_classes; classes = network_classes()\n"


def after_the_quick_import(code: str, *arguments: str) -> Any:
    """What the code leaves in `found`."""
    script = f"import sys, json, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, 'src')\n{QUICK}{code}\n"
    command = [sys.executable, "-c", script + "print('RESULT', json.dumps(found))", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("RESULT")[2])


@pytest.mark.parametrize(("kind", "sampler"), [("sd1", "DDIM"), ("sd3", "Default"), ("flux", "Default")])
def test_a_picture_is_drawn_without_the_compiler_peft_and_scipy(
    kind: str, sampler: str, checkpoint: Callable[[str], Path]
) -> None:
    code = """
from pathlib import Path
sys.path.insert(0, ".")
from safelight.models.checkpoints.digest import digest_model
from safelight.models.checkpoints.families import describe
from safelight.models.networks.load import load_model
from safelight.models.networks.placement import choose_placement
from tests.fakes import draw, spec_for
description = describe(Path(sys.argv[1]))
model = load_model(description, name="tiny", digest=digest_model(description), placement=choose_placement("cpu"))
image = draw(spec_for(model, sampler=sys.argv[2]), model)
heavy = ("torch._dynamo", "torch._inductor", "peft", "scipy", "matplotlib")
transformers = ("diffusers.models.transformers.transformer_sd3", "transformers.models.t5.modeling_t5")
found = {"size": image.size, "loaded": [name for name in heavy if name in sys.modules],
         "transformers": [name in sys.modules for name in transformers],
         "meta": next(denoiser_class(description.family.name)(description.unet).parameters()).is_meta}
"""
    found = after_the_quick_import(code, str(checkpoint(kind)), sampler)
    if sampler == "Default":  # the flow schedulers import scipy themselves, when their table is first made
        found["loaded"].remove("scipy")
    transformers = [kind != "sd1"] * 2
    assert found == {"size": [64, 64], "loaded": [], "transformers": transformers, "meta": True}


def test_blocked_imports_work_afterwards() -> None:
    """Pipelines, LoRA, schedulers that need scipy, and the compiler."""
    code = """
import torch
from diffusers import StableDiffusionPipeline, LMSDiscreteScheduler, EulerDiscreteScheduler, UNet2DConditionModel
import diffusers.loaders.lora_base as lora_base, diffusers.loaders.lora_pipeline as lora_pipeline
import diffusers, scipy.stats
scheduler = LMSDiscreteScheduler()
scheduler.set_timesteps(4)
scheduler.step(torch.ones(1), scheduler.timesteps[0], torch.ones(1))
EulerDiscreteScheduler(use_beta_sigmas=True).set_timesteps(4)
import torch._dynamo
compiled = torch.compile(lambda x: x * 2 + 1, backend="eager")
found = {
    "peft": hasattr(lora_base, "BaseTunerLayer"),
    "lora": hasattr(StableDiffusionPipeline, "load_lora_weights"),
    "compiled": compiled(torch.ones(1)).item(),
    "frames": torch._dynamo.utils.counters["frames"]["ok"],
    "one class": diffusers.UNet2DConditionModel is UNet2DConditionModel,
    "builds": type(classes.unet({"block_out_channels": [32, 32], "down_block_types": ["DownBlock2D"] * 2,
                                 "up_block_types": ["UpBlock2D"] * 2})).__name__,
}
"""
    assert after_the_quick_import(code) == {
        "peft": True,
        "lora": True,
        "compiled": 3.0,
        "frames": 1,
        "one class": True,
        "builds": "UNet2DConditionModel",
    }
