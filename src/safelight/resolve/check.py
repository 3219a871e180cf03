"""What can be found wrong with a draft by looking at names and file headers, before torch is imported."""

from pathlib import Path

from safelight.diffusion.samplers import find_sampler
from safelight.errors import UnknownSampler
from safelight.models.adapters.control_file import describe_control, hint_kind
from safelight.models.adapters.ip_file import READS_FACES, READS_PICTURES, kind_of, require_adapter, require_inputs
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.control_folder import ControlFolder
from safelight.models.checkpoints.families import Description, describe
from safelight.models.checkpoints.hub import HUB_ID
from safelight.models.checkpoints.part_folder import PartFolder
from safelight.models.vision.preprocessors import require_preprocessor
from safelight.plugins import Plugins
from safelight.prompts.lora_tags import extract_loras
from safelight.spec import Draft
from safelight.spec.parts import PartName


def check(draft: Draft, catalogue: Catalogue, plugins: Plugins) -> Description | None:
    """Return the model's description, or None for one that must be downloaded first.

    Raises:
        SafelightError: a name stands for nothing, or what it stands for does not fit the model.
    """
    for lora in (*draft.loras, *extract_loras(draft.prompt)[1]):
        catalogue.find(lora.name, "lora")
    if draft.sampler is not None:
        check_sampler(draft.sampler, plugins)
    for name in draft.effects:
        plugins.require("effect", name)
    parts: dict[PartName, str | None] = {"vae": draft.vae, "text_encoder": draft.text_encoder}
    for part, name in parts.items():
        if name is not None and not HUB_ID.match(name):
            PartFolder(catalogue).find(part, name)
    model = None
    if Path(draft.model).exists() or not HUB_ID.match(draft.model):
        model = describe(catalogue.find(draft.model))
    if draft.refiner is not None and not HUB_ID.match(draft.refiner):
        catalogue.find(draft.refiner)
    check_controls(draft, ControlFolder(catalogue), model)
    return model


def check_sampler(name: str, plugins: Plugins) -> None:
    try:
        find_sampler(name)
    except UnknownSampler:
        plugins.require_usable("sampler", name)
        raise


def check_controls(draft: Draft, folder: ControlFolder, model: Description | None) -> None:
    for control in draft.controls:
        require_preprocessor(control.preprocessor)
        path = folder.path("control", control.model)
        if model is not None:
            hint_kind(control, describe_control(path, model, name=control.model, model_name=draft.model))
    for prompt in draft.picture_prompts:
        path = folder.path("ip-adapter", prompt.model)
        if model is not None:
            require_adapter(path, model, name=prompt.model, model_name=draft.model)
        kind = kind_of(path)
        require_inputs(prompt, kind)
        if kind in READS_PICTURES:
            folder.path("image-encoder", folder.encoder_for(path, prompt.encoder))
        if kind in READS_FACES and not prompt.faces:
            folder.path("face-model", folder.face_model_for(prompt.face_model))
