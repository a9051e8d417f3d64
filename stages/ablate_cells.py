"""The cells of an ablation, one per arm and seed: each a run made from the ablated one, sharing proxies and merges.

RUN/ablate/<grid>/<arm>/seed-<n>/     a cell: run.yaml, derived.json, its student and evaluation
RUN/ablate/shared/proxies/<teacher>-<hash>/, merges/<hash>/     by everything that they depend on
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cache import ClipIndex
from ..errors import FingerprintMismatch, UniegoError, fingerprint_difference
from ..pipeline import files
from ..pipeline.config import RunConfig
from ..pipeline.configfile import load_config, write_config
from ..pipeline.origin import Origin
from ..pipeline.rundir import Run, TaskFolder
from .ablate_adopt import Takeover, own_work, same, short_hash, take_over
from .ablate_grid import SHARED, Arm, Grid
from .export import outputs_complete, outputs_name
from .fingerprints import settings_of, training_fingerprint
from .methods import needed_proxies
from .proxy_training import proxy_fingerprint
from .rows import RunRows, run_rows
from .targets import open_index, open_teacher, pool

FAILURE = "failure.json"
_INERT = ("preset", "cache", "extract", "train_teachers", "compute", "evaluate")  # do not change what is trained


@dataclass(frozen=True)
class Cell:
    """One arm with one seed.

    `run`: the derived run, whose folder need not exist yet. `proxies`: those it needs, by teacher; `merge`: whether it
    needs the merge of them. `finished`: their work is done and their outputs are all in the cache. `refused`: why the
    cell cannot be trained, since what lies in its folder was begun under other settings. `own`: merge and network of
    the ablated run that take the place of the cell's.
    """

    arm: Arm
    seed: int
    run: Run
    proxies: Mapping[str, TaskFolder]
    merge: TaskFolder | None
    finished: frozenset[str]
    refused: UniegoError | None = None
    own: tuple[Takeover, ...] = ()

    @property
    def title(self) -> str:
        """ "K=2, seed 0"."""
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def model(self) -> str:
        """What is evaluated; a student under the name that its method gives it."""
        return self.run.config.distill.variant if self.arm.model == "student" else self.arm.model

    def results(self) -> dict[str, Any] | None:
        """Accuracies, and "weights", the hash of what was evaluated; None: there is work to do."""
        folder = self.run.evaluation_folder(self.model)
        record = folder.record
        if self.refused is not None or record is None or record["state"] != "done":
            return None
        fingerprint, wanted = record["fingerprint"], self.run.config.evaluate
        if fingerprint["protocol"] != {"views": wanted.views, "crops": wanted.crops}:
            return None
        return {**record["results"], "weights": fingerprint["weights"]}

    @property
    def takes_merge(self) -> bool:
        """Whether the ablated run's merge is its own."""
        return self.merge is not None and any(target.path == self.merge.path for _, target in self.own)

    @property
    def takes_network(self) -> bool:
        """Whether what it would train is taken over from the ablated run."""
        return any(self.merge is None or target.path != self.merge.path for _, target in self.own)

    def failure(self) -> str | None:
        """Why its last attempt failed; None: it did not, or was not made."""
        path = self.run.root / FAILURE
        return str(json.loads(path.read_text(encoding="utf-8"))["message"]) if path.exists() else None

    def failed(self, message: str | None) -> None:
        """Keep why an attempt failed, for the table; None when a new one begins."""
        if message is None:
            (self.run.root / FAILURE).unlink(missing_ok=True)
        else:
            files.write_json(self.run.root / FAILURE, {"message": message})

    def write(self) -> None:
        """Make the folder, so that any command of uniego works in it."""
        self.run.root.mkdir(parents=True, exist_ok=True)
        if self.run.origin is not None:
            self.run.origin.write(self.run.root)
        write_config(self.run.root / "run.yaml", self.run.config)


def make_cells(run: Run, grid: Grid) -> list[Cell]:
    """All cells, seed by seed; nothing is written.

    Raises `MissingInputError` naming the command for features that are not there, and what else `targets.pool` raises.
    """
    return [cell for seed in grid.seeds for cell in _Seed(run, grid, seed).cells()]


def adopt(run: Run, cell: Cell) -> list[str]:
    """Give a cell what the run itself has finished and the cell needs the same of; returns what it took, in words."""
    pairs = [(run.proxy_folder(key), folder) for key, folder in cell.proxies.items()]
    pairs = [(own, folder) for own, folder in pairs if folder.record is None and same(own, folder.path.name)]
    return [own.title for own, folder in [*pairs, *cell.own] if take_over(own, folder)]


class _Seed:
    """What the cells of one seed have in common: split, rows and pool."""

    def __init__(self, run: Run, grid: Grid, seed: int) -> None:
        self._run, self._grid, self._seed = run, grid, seed
        wanted = {key for arm in grid.arms for key in arm.teachers or run.config.teachers}
        teachers = {key: config for key, config in run.config.teachers.items() if key in wanted}
        whole = Run(run.root, run.config.model_copy(update={"seed": seed, "teachers": teachers}))
        self._index: ClipIndex = open_index(whole)
        self._rows: RunRows = run_rows(whole, self._index)
        self._pool = pool(whole, strict=False)

    def cells(self) -> Iterator[Cell]:
        for arm in self._grid.arms:
            yield self._cell(arm)

    def _cell(self, arm: Arm) -> Cell:
        config = arm.config(self._run.config, self._seed)
        root = self._run.root / "ablate" / self._grid.name / arm.name / f"seed-{self._seed}"
        plain = Run(root, config, Origin(self._run.root))
        able = [key for key in self._pool if key in config.teachers]
        keys, merges = needs(config, arm.model, able)
        if not set(keys) <= set(able) or (merges and not able):
            raise UniegoError(f"arm {arm.name!r}: no train clip has a feature of {', '.join(keys or config.teachers)}")
        hashes = {key: self._proxy_hash(plain, key) for key in keys}
        places = {f"proxies/{key}": f"ablate/{SHARED}/proxies/{key}-{hashes[key]}" for key in keys}
        if merges:
            places["distill/merge"] = f"ablate/{SHARED}/merges/{self._merge_hash(plain, hashes)}"
        run = Run(root, config, Origin(self._run.root, places))
        proxies = {key: run.proxy_folder(key) for key in keys}
        finished = {key for key in keys if self._finished(run, key, proxies[key])}
        merge, refused = run.merge_folder if merges else None, _other(run)
        own: tuple[Takeover, ...] = ()
        if refused is None and all(key in finished and self._is_own(key, proxies[key]) for key in keys):
            own = tuple(own_work(self._run, run, arm.model, keys if merges else None, able, self._rows))
        return Cell(arm, self._seed, run, proxies, merge, frozenset(finished), refused, own)

    def _is_own(self, key: str, folder: TaskFolder) -> bool:
        """Whether a shared proxy is, or will be, that of the ablated run."""
        own = self._run.proxy_folder(key)
        alike = same(own, folder.path.name)
        return alike and (folder.record is None or folder.results["weights"] == own.results["weights"])

    def _proxy_hash(self, run: Run, key: str) -> str:
        return short_hash(proxy_fingerprint(run, key, open_teacher(run, self._index, key), self._rows))

    def _merge_hash(self, run: Run, proxies: Mapping[str, str]) -> str:
        """By the proxies' own hashes: their weights are not known before they are trained."""
        portions, start = run.config.distill.train, run.config.distill.model_dump(include={"init"})
        batch = {"global_batch": portions.global_batch, "micro_batch": portions.micro_batch}
        inputs = {"proxies": dict(proxies), **batch, **start}
        return short_hash(training_fingerprint(run, run.config.merge, inputs, self._rows))

    def _finished(self, run: Run, key: str, folder: TaskFolder) -> bool:
        """Whether a shared proxy, or one of the ablated run that can take its place, needs no work."""
        own = self._run.proxy_folder(key)
        source = own if folder.record is None and same(own, folder.path.name) else folder
        if not source.done:
            return False
        name = outputs_name(run, key, source.results["weights"])
        return bool(source.results["outputs"] == name) and outputs_complete(run, self._index, name, self._rows.train)


def needs(config: RunConfig, model: str, able: Sequence[str]) -> tuple[list[str], bool]:
    """The teachers whose proxies an arm needs, of those that are able to teach, and whether it needs their merge."""
    if model == "ego-only":
        return [], False
    kind, _, key = model.partition(":")
    if kind == "proxy":
        return [key], False
    return needed_proxies(config.distill, able), config.distill.init == "merged"


def _other(run: Run) -> FingerprintMismatch | None:
    """In what a cell that was begun differs from what is wanted now."""
    path = run.root / "run.yaml"
    tasks = [TaskFolder(record.parent, "") for record in run.root.rglob("record.json")]
    if not path.exists() or not any(task.begun() for task in tasks):
        return None
    stored, origin = load_config(path), Origin.read(run.root)
    old = {**_settings(stored), "inputs": {} if origin is None else dict(origin.places)}
    new = {**_settings(run.config), "inputs": {} if run.origin is None else dict(run.origin.places)}
    different = fingerprint_difference(old, new)
    advice = f"Restore those settings, give the arm or the grid another name, or remove {run.root}."
    return FingerprintMismatch(f"what lies in {run.root}", different, advice) if different else None


def _settings(config: RunConfig) -> dict[str, Any]:
    """The configuration without what does not change what is trained; the features are among the inputs."""
    settings = {name: value for name, value in settings_of(config).items() if name not in _INERT}
    for section in ("proxies", "distill"):
        settings[section] = settings_of(getattr(config, section))
    look = config.evaluate.model_dump(exclude={"views", "crops"})
    return {**settings, "teachers": list(config.teachers), "evaluate": look, "precision": config.compute.precision}
