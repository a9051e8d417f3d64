"""Stage 2: one proxy per teacher, an ego-video network that learns the teacher's features and the labels.

The stage ends with the proxy's outputs over the train split (token and logits, one view, centre crop) in the
cache: stage 3 reads those and never runs a proxy again. The proxies know nothing of each other: they are trained one
after the other in this process, side by side in several, or by Dask workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..errors import EXIT_FAILURE, Stopped, UniegoError, UsageError
from ..pipeline.progress import say, warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from . import ranks
from .clip_gain import offer_clip_store
from .clip_source import training_reader
from .compute import prepare
from .engines.places import places_for
from .imported import imported, imported_proxies
from .proxy_options import ProxyOptions
from .proxy_task import feature_loss
from .proxy_training import train_one
from .targets import pool, warn_of_random
from .training import trained

__all__ = ["feature_loss", "train_proxies"]

Failures = dict[str, UniegoError | OSError]


def train_proxies(
    run: Run,
    teachers: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    strict: bool = False,
    options: ProxyOptions | None = None,
) -> None:
    """Train the proxies of the named teachers (None: all that have features) and export their outputs.

    Continues where it stopped; a finished proxy is left as it is, and one that fails does not stop the others.
    `options` say who computes; see `ProxyOptions` about bytes. Raises `MissingInputError` without features, or without
    the clip store that `clips.source` asks for; `FingerprintMismatch` for a proxy begun under other settings;
    `Stopped` after saving when asked to stop.
    """
    options = options or ProxyOptions()
    named = run.choose(teachers) if teachers else None
    device = prepare(run.config.compute)
    with ranks.joined(run.config.compute):
        given = [] if overwrite else imported_proxies(run)
        chosen = ranks.first_then_others(lambda: pool(run, strict=strict, only=named, without_features=given))
        failures = _train_pool(run, chosen, device, options, overwrite)
    if failures:
        raise _together(failures, len(chosen))
    left = [key for key in run.config.teachers if key not in chosen and not run.proxy_folder(key).done]
    if left and named:
        say(f"next: {run.command('train-proxies')} (left: {', '.join(left)})")
    else:
        say(f"next: {run.command('distill')}")


def _train_pool(
    run: Run, chosen: Sequence[str], device: torch.device, options: ProxyOptions, overwrite: bool
) -> Failures:
    if ranks.world() > 1 and (options.engine != "local" or options.jobs not in (None, 1)):
        raise UsageError(
            "torchrun's processes train one proxy together: leave --engine and --jobs away, or start without torchrun"
        )
    warn_of_random(run, [key for key in chosen if overwrite or imported(run.proxy_folder(key)) is None])
    if run.config.student.init is None:
        warn("student.init is null: proxies start from random weights, which is for trying things out only")
    if overwrite or any(not run.proxy_folder(key).done for key in chosen):
        training_reader(run)  # a clip store that is not there is told now
    with StopFlag() as flag:
        if overwrite or any(not trained(run.proxy_folder(key).path) for key in chosen):
            if ranks.rank() == 0:
                offer_clip_store(run, run.table().split("train"))
            flag.check()
        if options.engine == "dask":
            from .engines.proxy_cluster import train_on_cluster  # Dask takes seconds to import

            return train_on_cluster(run, chosen, options, flag, overwrite)
        alone = ranks.world() == 1
        if alone and (places := places_for(run.config.compute, device, options.jobs, len(chosen))):
            from .engines.proxies import train_in_processes

            return train_in_processes(run, chosen, places, flag, overwrite)
        return _train_here(run, chosen, flag, overwrite)


def _train_here(run: Run, keys: Sequence[str], flag: StopFlag, overwrite: bool) -> Failures:
    """One after the other; one that fails does not keep the others from their turn.

    Where several processes train together the first failure ends it: the others cannot know of it otherwise.
    """
    failures: Failures = {}
    for key in keys:
        flag.check()
        try:
            train_one(run, key, flag, overwrite)
        except Stopped:
            raise
        except (UniegoError, OSError) as error:
            if ranks.world() > 1:
                raise
            failures[key] = error
            warn(f"proxy {key} failed: {error}")
    return failures


def _together(failures: Mapping[str, UniegoError | OSError], number: int) -> UniegoError | OSError:
    """A single failure as it is, several as one `UniegoError` with the exit code that they have in common."""
    if len(failures) == 1:
        return next(iter(failures.values()))
    told = "\n".join(f"  {key}: {error}" for key, error in failures.items())
    together = UniegoError(f"{len(failures)} of {number} proxies failed, the others are done:\n{told}")
    codes = {getattr(error, "exit_code", EXIT_FAILURE) for error in failures.values()}
    together.exit_code = codes.pop() if len(codes) == 1 else EXIT_FAILURE
    return together
