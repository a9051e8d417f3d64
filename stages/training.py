"""What trainings set up around the loop: batches from the run's clips, plan, validation, the trained model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import WeightsError
from ..models import TimeSformer, load_image_weights, read_image_weights
from ..pipeline.clips import Clip
from ..pipeline.config import StudentConfig, TrainConfig
from ..pipeline.progress import say
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from . import batches, ranks
from .batches import Batch, ClipReader, Protocol, Reader
from .checkpoints import check_finite
from .clip_source import training_reader
from .compute import resolve_device
from .encoder import CONFIG, write_model
from .events import require_tensorboard
from .fingerprints import init_path
from .loop import Batches, Loop, Plan, Task
from .recognition import recognise
from .view import VIEW


def make_plan(run: Run, config: TrainConfig, clips: Sequence[Clip]) -> Plan:
    """Steps and portions of a training over `clips`. Raises `UsageError` where its event files cannot be written."""
    if run.config.compute.tensorboard:
        require_tensorboard()
    return Plan(
        epochs=config.epochs,
        steps_per_epoch=len(clips) // config.global_batch,
        accumulate=config.global_batch // config.micro_batch,
        batch=config.global_batch,
        checkpoint=config.checkpoint,
        device=resolve_device(run.config.compute),
        precision=run.config.compute.precision,
        tensorboard=run.config.compute.tensorboard,
        compile=run.config.compute.compile,
    )


def make_batches(run: Run, config: TrainConfig, clips: Sequence[Clip], reader: Reader | None = None) -> Batches:
    """Augmented micro-batches of `clips` from any step on, the way `reader` sees them (None: the student's,
    from where `clips.source` says)."""
    look, compute = reader or training_reader(run), run.config.compute
    pin = resolve_device(compute).type == "cuda"

    def stream(epoch: int, step: int) -> Iterator[Batch]:
        order = batches.training_order(
            clips,
            seed=run.config.seed,
            epochs=config.epochs,
            global_batch=config.global_batch,
            micro_batch=config.micro_batch,
            start=(epoch, step),
            share=(ranks.rank(), ranks.world()),
        )
        return batches.load(look, clips, order, workers=compute.workers, pin_memory=pin)

    return stream


def evaluation_protocol(run: Run) -> Protocol:
    """Views and crops of the evaluation."""
    return Protocol(run.config.evaluate.views, run.config.evaluate.crops)


def make_validator(
    run: Run, flag: StopFlag, clips: Sequence[Clip] | None = None, reader: Reader | None = None
) -> Callable[[nn.Module], dict[str, float]] | None:
    """Top-1 on `clips` (None: the val split), one view, centre crop; None when there are no such clips."""
    held_out = run.table().split("val") if clips is None else clips
    if not held_out:
        return None

    look = reader or training_reader(run)

    def validate(model: nn.Module) -> dict[str, float]:
        metrics = recognise(run, model, held_out, batches.SINGLE, flag, reader=look, title="validation").metrics()
        return {"score": metrics["top1"] or 0.0, **metrics}

    return validate


def fresh_model(run: Run, projections: Mapping[str, int], network: StudentConfig | None = None) -> TimeSformer:
    """A network (None: of the student's shape) with random weights from the run's seed."""
    shape = network or run.config.student
    model = TimeSformer(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        num_frames=shape.num_frames,
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        num_classes=run.table().num_classes,
        projections=projections,
        drop_path=shape.drop_path,
        seed=run.config.seed,
    )
    model.recompute = run.config.compute.recompute
    return model


def initial_proxy(run: Run, projections: Mapping[str, int], network: StudentConfig | None = None) -> TimeSformer:
    """What a proxy (or `network`) starts from: image weights when the run names some, else random ones."""
    model, init = fresh_model(run, projections, network), (network or run.config.student).init
    if init is None:
        return model
    report = load_image_weights(model, read_image_weights(_image_weights_path(run, init)))
    say(f"initialised from {init}: {len(report.loaded)} tensors taken, {len(report.unchanged)} left as they are")
    return model


def _image_weights_path(run: Run, init: str) -> Path:
    """A file or folder; one named hub:<id> is fetched into the hub's own cache."""
    if not init.startswith("hub:"):
        return init_path(run, init)
    from huggingface_hub import snapshot_download

    name = init.removeprefix("hub:")
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors"]))
    except Exception as error:  # whatever the network or the hub says, the way out is the same
        raise WeightsError(
            f"student.init {init} cannot be fetched here ({type(error).__name__}: {error}); download {name} on a "
            "machine that can, and set student.init to that folder"
        ) from error


def trained(folder: Path) -> bool:
    """Whether `train_to_folder` has finished there."""
    return (folder / "model" / CONFIG).exists()


def train_to_folder(
    run: Run, folder: Path, task: Task, model: TimeSformer, plan: Plan, stream: Batches, flag: StopFlag
) -> None:
    """Run the loop and write the last epoch's network to `folder`/model, the best on val to `folder`/best."""

    def write(name: str, tensors: Mapping[str, Tensor]) -> None:
        write_trained(run, folder / name, model, tensors)

    train_and_write(folder, task, plan, stream, flag, write)


def train_and_write(
    folder: Path,
    task: Task,
    plan: Plan,
    stream: Batches,
    flag: StopFlag,
    write: Callable[[str, Mapping[str, Tensor]], None],
) -> None:
    """Run the loop in `folder`; `write` the best on val as "best" where there is one, then the last as "model"."""
    position = Loop(task, plan, folder, flag).run(stream)

    def finish() -> None:
        if position.best_epoch is not None:
            write("best", load_file(folder / "best.safetensors"))
            score = f"top-1 {position.best_score:.1f}"
            say(f"best on val: epoch {position.best_epoch}, {score}; the model is the last epoch's")
        write("model", task.tensors())

    ranks.from_first(finish)


def remove_scaffold(folder: Path) -> None:
    """Remove what finished training no longer needs."""
    for name in ("checkpoints", VIEW):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "best.safetensors").unlink(missing_ok=True)


def write_trained(run: Run, folder: Path, model: TimeSformer, tensors: Mapping[str, Tensor]) -> None:
    """A trained network as a folder that `uniego.load` opens."""
    check_finite(tensors, f"trained weights for {folder}")
    reader = ClipReader.from_config(run.config)
    write_model(folder, model, tensors, reader, evaluation_protocol(run), run.table().classes)
