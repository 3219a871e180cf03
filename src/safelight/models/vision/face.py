"""Face embeddings by a recognition network in ONNX: ArcFace (arXiv:1801.07698), and networks that read alike.

    aligned face, 112x112 RGB in [-1, 1]  ->  the network, on the CPU  ->  a unit vector of 512 numbers

Nothing here finds a face: the picture is what insightface's `norm_crop` cuts out, whose side is 112 pixels or a
multiple. A graph in ONNX holds no code, and is read from memory, so that it cannot refer to other files.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safelight.errors import CorruptModel, InvalidImage, MissingExtra, UnsupportedOption
from safelight.spec.effects import FACE_WIDTH

SIDE = 112
"""Of the network's input, in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class FaceModel:
    session: Any
    """An `onnxruntime.InferenceSession`."""

    def embed(self, image: Image.Image) -> Tensor:
        """The embedding of an aligned face, (1, 512), a unit vector in float32 on the CPU.

        Raises:
            InvalidImage: the picture is not of an aligned face's size.
        """
        require_aligned(image.size)
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        pixels = (np.asarray(small, dtype=np.float32) - 127.5) / 127.5
        [said] = self.session.run(None, {self.session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]})
        return torch.nn.functional.normalize(torch.from_numpy(np.array(said, dtype=np.float32)), dim=-1)


def require_aligned(size: tuple[int, int]) -> None:
    """
    Raises:
        InvalidImage: as `FaceModel.embed`.
    """
    width, height = size
    if width != height or width % SIDE:
        raise InvalidImage(
            f"a face model needs an aligned, square face, {SIDE} pixels wide or a multiple, not {width}x{height}: "
            "crop it as insightface's norm_crop does, or give the face embedding in the field `faces` instead"
        )


def require_runtime() -> None:
    """Raises MissingExtra if ONNX models cannot be run."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtra("face models are run by onnxruntime", "face")


def load_face_model(path: Path) -> FaceModel:
    """
    Raises:
        MissingExtra: onnxruntime is not installed.
        CorruptModel: the file is no ONNX model.
        UnsupportedOption: the model reads or says something else.
    """
    require_runtime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the same bits whatever else runs; one face takes a fraction of a second
    options.log_severity_level = 4
    try:
        session: Any = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception for each cause, and they share no base but this
        raise CorruptModel(f"{path} cannot be read as an ONNX model: {str(error).splitlines()[0]}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    reads, says = ([one.shape for one in several] for several in (inputs, outputs))
    if len(reads) != 1 or reads[0][1:] != [3, SIDE, SIDE] or len(says) != 1 or says[0][1:] != [FACE_WIDTH]:
        raise UnsupportedOption(
            "face_model",
            f"{path} reads {reads} and says {says}; a face model reads [n, 3, {SIDE}, {SIDE}], says [n, {FACE_WIDTH}]",
        )
    return FaceModel(session)
