"""A trained network as an ONNX file, compared with the network by ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UniegoError, UsageError
from ..models import TimeSformer

ONNX = "model.onnx"
TOLERANCE = 1e-4
"""Largest absolute difference of tokens and logits from the network's, float32."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_BATCHES = (1, 3)  # clips, in the comparison; the export itself sees two
_EMBED = 1_500_000_000  # bytes of weights that fit into one file of Protocol Buffers (2 GB)


def require_onnx() -> None:
    """Raise `UsageError` where the packages are not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--onnx needs {', '.join(missing)}: pip install 'uniego[onnx]'")


class _Outputs(nn.Module):
    def __init__(self, model: TimeSformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(video)
        return out.token, out.logits


def write_onnx(model: TimeSformer, path: Path) -> float:
    """Write a network (in eval mode, on the CPU) and return by how much ONNX Runtime differs from it at most.

    Input "video" float32 [batch, 3, T, S, S], normalised, of the network's own T and S; outputs "token" [batch, width]
    and "logits" [batch, C]. Any batch. Raises `UniegoError` where a number differs by more than `TOLERANCE`.
    """
    require_onnx()
    geometry = model.geometry
    size = geometry["image_size"]
    shape = (3, geometry["num_frames"], size, size)
    outputs = _Outputs(model).eval()
    generator = torch.Generator().manual_seed(0)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it tells its steps on stdout
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            outputs,
            (torch.randn(2, *shape, generator=generator),),
            dynamo=True,
            input_names=["video"],
            output_names=["token", "logits"],
            dynamic_shapes={"video": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
        if program is None:
            raise UniegoError("torch.onnx.export gave no program")
        program.save(path, external_data=weights > _EMBED)
    found = [_difference(outputs, path, torch.randn(n, *shape, generator=generator)) for n in _BATCHES]
    apart = float(torch.tensor(found).max())
    if not apart <= TOLERANCE:
        raise UniegoError(f"{path.name} differs from the network by {apart:.1e}, more than {TOLERANCE}: not written")
    return apart


@torch.inference_mode()
def _difference(outputs: nn.Module, path: Path, video: Tensor) -> float:
    """Largest absolute difference of what the file and the network give for videos."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pairs = zip(session.run(None, {"video": video.numpy()}), outputs(video), strict=True)
    apart = [(torch.from_numpy(theirs) - ours).abs().max().float() for theirs, ours in pairs]
    return float(torch.stack(apart).max())  # NaN where any is: Python's max would pass over it
