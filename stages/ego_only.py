"""The student's network trained on the ego video and the labels alone: what distillation is compared against."""

from __future__ import annotations

from ..pipeline import files
from ..pipeline.config import TrainConfig
from ..pipeline.progress import say
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from . import ranks
from .compute import prepare
from .encoder import WEIGHTS
from .fingerprints import training_fingerprint
from .supervised import Supervised, VideoTask
from .training import initial_proxy, make_batches, make_plan, make_validator, remove_scaffold, train_to_folder, trained


def train_ego_only(run: Run, config: TrainConfig, *, overwrite: bool = False) -> None:
    """Train in RUN/ego-only, from the same start as the proxies; continues where it stopped, as other stages do.

    `config` says for how long: the distilled student's weights have seen the clips in stage 2 and in stage 3.
    """
    device = prepare(run.config.compute)
    folder = run.ego_only_folder
    with (
        ranks.joined(run.config.compute),
        StopFlag() as flag,
        ranks.working(folder, ego_only_fingerprint(run, config), overwrite=overwrite) as needed,
    ):
        if not needed:
            say("ego-only: finished before, nothing to do")
            return
        if not ranks.from_first(lambda: trained(folder.path)):
            clips = run.table().split("train")
            base = Supervised(initial_proxy(run, {}), clips, run.config.seed, device, make_validator(run, flag))
            task = VideoTask("ego-only", config, base)
            stream = make_batches(run, config, clips)
            train_to_folder(run, folder.path, task, base.model, make_plan(run, config, clips), stream, flag)

        def finish() -> None:
            remove_scaffold(folder.path)
            folder.finish({"weights": files.hash_file(folder.path / "model" / WEIGHTS)})

        ranks.from_first(finish)


def ego_only_fingerprint(run: Run, config: TrainConfig) -> dict[str, object]:
    """What the network depends on."""
    return training_fingerprint(run, config, {})
