"""A trained network as a folder for others: config.json, model.safetensors, a model card, perhaps model.onnx."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..pipeline import files
from ..pipeline.progress import say, size_text
from ..pipeline.rundir import Run
from .encoder import CONFIG, WEIGHTS, read_model, run_protocol
from .evaluate import trained_folder
from .model_card import model_card

CARD = "README.md"


def export_model(run: Run, out: Path, *, model: str = "student", onnx: bool = False) -> None:
    """Write a run's "student" or "proxy:<teacher>" to the folder `out`, whole or not at all.

    `uniego.load(out)` looks at videos as the run evaluates them. With `onnx` also model.onnx, compared with the
    network. Raises `UsageError` for a folder that has something in it, `MissingInputError` for a model that is not
    trained yet.
    """
    refuse_filled(out)
    trained = trained_folder(run, model).path / "model"
    if onnx:
        from .onnx_export import require_onnx

        require_onnx()
    network, config = read_model(trained)
    protocol, reader = run_protocol(run.config, config)
    config |= {"protocol": protocol._asdict()}
    config["input"] |= {"single_short_side": reader.single_short_side, "backend": reader.backend}
    with NewFolder(out) as folder:
        shutil.copyfile(trained / WEIGHTS, folder / WEIGHTS)
        files.write_json(folder / CONFIG, config)
        note = ""
        if onnx:
            from .onnx_export import ONNX, write_onnx

            apart = write_onnx(network, folder / ONNX)
            note = f"; {ONNX} differs from the network by at most {apart:.1e}"
        card = model_card(run, model, config, files.hash_file(trained / WEIGHTS), onnx=onnx)
        files.write_bytes(folder / CARD, card.encode())
        size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"wrote {model} to {out} ({size_text(size)}){note}; next: uniego encode VIDEO --model {out} --out features.npy")


def refuse_filled(out: Path) -> None:
    """Raise `UsageError` unless a folder can be made at `out`: nothing may be there, or an empty folder."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UsageError(f"--out {out} is there already: name a new folder, or an empty one")


class NewFolder:
    """A folder that appears at `path` when the with block ends well, and not otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._made = self.path.with_name(f".{self.path.name}{files.PARTIAL}")

    def __enter__(self) -> Path:
        """Where to write."""
        files.make_dir(self.path.parent)
        files.remove_tree(self._made)  # of one that was killed
        files.make_dir(self._made)
        return self._made

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            shutil.rmtree(self._made, ignore_errors=True)
            return
        files.sync_tree(self._made)
        files.operations.rename(self._made, self.path)  # an empty folder gives way
        files.sync_dir(self.path.parent)
