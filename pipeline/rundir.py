"""The run directory: where everything lies, and the record of each piece of work.

RUN/run.yaml, classes.json
RUN/teachers/<teacher>/        teachers trained on the run's own clips
RUN/cache/                    the feature store (unless cache.root names another)
RUN/cache-mirror/<hash>/      copies of the small files of one in object storage
RUN/clips/                    what was seen of the ego videos when the clip store was made
RUN/extract/                  which features the settings stand for, what was seen of the files, locks of extractions
RUN/proxies/<teacher>/        stage 2
RUN/distill/merge/, student/  stage 3
RUN/distill/variants/<name>/  students of other methods and starts, for comparison
RUN/ego-only/                 a network trained without teachers, for comparison (only where asked for)
RUN/evaluate/                 results
RUN/analyze/                  analyses, and what they had to compute: tokens of a student
RUN/ablate/<grid>/<arm>/seed-<n>/   runs made from this one (see `origin`); RUN/ablate/shared/ what they share
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from ..errors import (
    BusyError,
    ConfigError,
    FingerprintMismatch,
    MissingInputError,
    Stopped,
    TableError,
    UniegoError,
    UsageError,
    fingerprint_difference,
)
from . import files
from .clips import Clip, ClipTable, hold_out, read_clip_table
from .config import RunConfig
from .configfile import load_config, write_config
from .objects import is_url
from .origin import Origin
from .sources import Sources, identity, measure, read_sources


@dataclass(frozen=True)
class Run:
    """A folder with a run.yaml, and the resolved configuration. `origin`: of a run that is made from another one."""

    root: Path
    config: RunConfig
    origin: Origin | None = None

    @classmethod
    def create(cls, directory: Path, config: RunConfig, notes: Mapping[str, str] | None = None) -> Run:
        """Write run.yaml (with `notes` as comments) and the class map; refuses a folder that is a run already."""
        path = directory / "run.yaml"
        if path.exists():
            raise UsageError(f"{path} exists: this folder is a run already; choose another folder")
        run = cls(directory, config)
        table = run.table()  # a table that cannot be read makes no run
        directory.mkdir(parents=True, exist_ok=True)
        files.write_json(run._classes_path, list(table.classes))
        write_config(path, config, notes)
        return run

    @classmethod
    def open(cls, directory: Path, overrides: Sequence[str] = ()) -> Run:
        """Read run.yaml, with `a.b=c` overrides. Raises `MissingInputError` where there is none."""
        path = directory / "run.yaml"
        if not path.exists():
            raise MissingInputError(
                f"no run.yaml in {directory.resolve()}: go to a run's folder or name it with --run, or make one "
                "with `uniego init DIR --data TABLE --preset NAME`"
            )
        return cls(directory, load_config(path, overrides), Origin.read(directory))

    @property
    def base(self) -> Path:
        """Where relative paths in run.yaml start: the run's folder, or that of the run that it is made from.

        There lie also the class map, the records of what was extracted, and the teachers trained on the clips.
        """
        return self.root if self.origin is None else self.origin.base

    def _at(self, place: str) -> Path:
        """A piece of work: in the run's folder, or where derived runs share it."""
        shared = None if self.origin is None else self.origin.places.get(place)
        return self.root / place if shared is None else self.base / shared

    @property
    def cache_root(self) -> Path:
        """Folder of the feature store; of one in object storage the mirror, brought up to date at first use."""
        root = self.config.cache.root
        return self._mirror if is_url(root) else self.base / root

    @property
    def cache_place(self) -> str:
        """Where the feature store is, in words: its absolute folder, or the URL of one in object storage."""
        root = self.config.cache.root
        return root.rstrip("/") if is_url(root) else str(self.cache_root.resolve())

    @cached_property
    def _mirror(self) -> Path:
        from ..cache.remote import open_mirror

        url = self.cache_place  # a folder for each: --set cache.root beside a worker must not take its mirror away
        return open_mirror(url, self.base / "cache-mirror" / files.hash_bytes(url.encode())[:8])

    @property
    def student_folder(self) -> TaskFolder:
        """The student's training (stage 3, second part)."""
        return self.variant_folder("student")

    def variant_folder(self, name: str) -> TaskFolder:
        """The training of "student", or of a variant of it (see `DistillConfig.variant`)."""
        if name == "student":
            return TaskFolder(self.root / "distill" / "student", "the student")
        return TaskFolder(self.root / "distill" / "variants" / name.replace(":", "-"), f"student {name}")

    def variants(self) -> list[str]:
        """Names of the variants that were begun here, "student" not among them."""
        folders = sorted((self.root / "distill" / "variants").glob("*/record.json"))
        records = [TaskFolder(path.parent, path.parent.name).record for path in folders]
        settings = [record["fingerprint"]["settings"] for record in records if record is not None]
        return [f"{known['method']}-{known['init']}" for known in settings]

    @property
    def merge_folder(self) -> TaskFolder:
        """The merge of the proxies (stage 3, first part)."""
        return TaskFolder(self._at("distill/merge"), "the merge")

    @property
    def ego_only_folder(self) -> TaskFolder:
        """The student's network trained without any teacher, for comparison."""
        return TaskFolder(self.root / "ego-only", "the ego-only network")

    def evaluation_folder(self, model: str) -> TaskFolder:
        """The evaluation of "student", a variant of it, "ego-only", "proxy:<teacher>", "teacher:<teacher>" or another
        encoder."""
        return TaskFolder(self.root / "evaluate" / model.replace(":", "-"), f"the evaluation of {model}")

    def analysis_folder(self, name: str) -> TaskFolder:
        """An analysis of finished work, or a part of one."""
        return TaskFolder(self.root / "analyze" / name, f"the analysis {name}")

    def teacher_folder(self, teacher: str) -> TaskFolder:
        """The training of a teacher on this run's clips."""
        return TaskFolder(self.base / "teachers" / teacher, f"teacher {teacher}")

    def proxy_folder(self, teacher: str) -> TaskFolder:
        """The training of one teacher's proxy (stage 2)."""
        return TaskFolder(self._at(f"proxies/{teacher}"), f"proxy {teacher}")

    def shared_proxies(self, teacher: str) -> list[TaskFolder]:
        """Proxies of a teacher that runs made from this one share."""
        folders = sorted((self.root / "ablate" / "shared" / "proxies").glob(f"{teacher}-*"))
        return [TaskFolder(folder, f"proxy {teacher}") for folder in folders]

    def command(self, words: str) -> str:
        """The words of a `uniego` command for this run, as they can be typed here."""
        here = self.root.resolve() == Path.cwd()
        return f"uniego {words}" if here else f"uniego {words} --run {self.root}"

    def record_sources(self, *, keep: bool = True) -> None:
        """Look at all files of the table, and keep with the run what was seen; see `pipeline.sources`."""
        known = read_sources(self._sources_path) if self._sources_path.exists() else {}
        seen = measure(self.table().clips, known)
        if keep and (not self._sources_path.exists() or known != seen):
            files.write_json(self._sources_path, seen)
        self.__dict__["sources"] = seen
        self._identities.clear()

    def identity(self, clip: Clip) -> str:
        """Hash of what a clip's features are made from (see `pipeline.sources`); each clip's is computed once."""
        known = self._identities.get(clip.clip_id)
        if known is None or known[0] is not clip:
            known = self._identities[clip.clip_id] = (clip, identity(clip, self.sources))
        return known[1]

    @cached_property
    def _identities(self) -> dict[str, tuple[Clip, str]]:
        return {}

    @cached_property
    def sources(self) -> Sources:
        """The table's files when features were last extracted. Raises `MissingInputError` before that."""
        if not self._sources_path.exists():
            raise MissingInputError(f"no features were extracted in {self.root}: run `uniego extract-teachers` first")
        return read_sources(self._sources_path)

    @property
    def _sources_path(self) -> Path:
        return self.base / "extract" / "sources.json"

    def extraction_settings(self, teacher: str) -> dict[str, Any]:
        """What the configuration says about a teacher's features. Whether random ones are allowed is not part of it.

        Of a teacher without `weights` also which network trained in this run stands for it.
        """
        config = self.config.teachers[teacher].model_dump(mode="json", exclude={"allow_random"})
        settings: dict[str, Any] = {
            "teacher": config,
            "video": self.config.video.model_dump(),
            "dtype": self.config.cache.dtype,
        }
        if config["weights"] is None:
            folder = self.teacher_folder(teacher)
            settings["trained"] = folder.results["weights"] if folder.done else None
        return settings

    def record_extraction(self, teacher: str, fingerprint: Mapping[str, Any]) -> None:
        """Remember that features of this fingerprint are what the present settings ask for."""
        record = {"settings": self.extraction_settings(teacher), "fingerprint": dict(fingerprint)}
        if self.extraction_record(teacher) != record:
            files.write_json(self.base / "extract" / f"{teacher}.json", record)

    def extraction_record(self, teacher: str) -> dict[str, Any] | None:
        """What `record_extraction` remembered: "settings" and "fingerprint"; None: nothing yet."""
        path = self.base / "extract" / f"{teacher}.json"
        record: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return record

    @contextmanager
    def extracting(self, teachers: Sequence[str]) -> Iterator[None]:
        """Mark these teachers as being extracted while the work inside goes on; several processes may."""
        with ExitStack() as stack:
            for teacher in teachers:
                path = self._extract_lock(teacher)
                path.parent.mkdir(parents=True, exist_ok=True)
                _lock_soon(stack.enter_context(path.open("ab")), shared=True)
            yield

    def is_extracting(self, teacher: str) -> bool:
        """Whether a living process is extracting a teacher."""
        return _is_locked(self._extract_lock(teacher))

    @contextmanager
    def alone(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the run's lock for what one extraction does at a time: planning, and writing the table of failures.

        `waiting` is called while another process has it, and may raise.
        """
        path = self.base / "extract" / "plan.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as handle:
            while not _try_lock(handle):
                waiting()
                time.sleep(0.1)
            yield

    def _extract_lock(self, teacher: str) -> Path:
        return self.base / "extract" / f"{teacher}.lock"

    def choose(self, teachers: Sequence[str] | None) -> list[str]:
        """The named teachers in the pool's order, or all; an unknown name is a usage error."""
        unknown = sorted(set(teachers or ()) - set(self.config.teachers))
        if unknown:
            raise ConfigError(f"unknown teacher {', '.join(unknown)}: this run has {', '.join(self.config.teachers)}")
        return [key for key in self.config.teachers if not teachers or key in teachers]

    def table(self) -> ClipTable:
        """The clip table, with the hold-out taken from train when the configuration asks for one.

        Raises `TableError` when the labels no longer mean what they meant when the run began.
        """
        return self._table

    @cached_property
    def _table(self) -> ClipTable:
        data = self.config.data
        table = read_clip_table(
            self.base / data.table,
            root=self.base / data.root if data.root is not None else None,
            num_classes=data.num_classes,
        )
        stored = self._classes_path
        if stored.exists():
            classes = tuple(json.loads(stored.read_text(encoding="utf-8")))
            unnamed = tuple(map(str, range(len(table.classes))))  # the table had no names yet
            if classes not in (table.classes, unnamed):
                raise TableError(
                    f"{table.path} names other classes than this run was made with ({stored}): "
                    f"{len(classes)} then, {len(table.classes)} now. Labels would change their meaning; "
                    "start a new run with `uniego init`"
                )
        return hold_out(table, data.holdout, self.config.seed) if data.holdout > 0 else table

    @property
    def _classes_path(self) -> Path:
        return self.base / "classes.json"


class TaskFolder:
    """One resumable piece of work: a folder with `record.json` and a lock that its process holds.

    The record says under which settings (fingerprint) the work was begun, whether it is done, and its results.
    """

    def __init__(self, path: Path, title: str) -> None:
        self.path, self.title = path, title

    @property
    def record(self) -> dict[str, Any] | None:
        """What is recorded: state ("started", "failed" or "done"), fingerprint, results or message."""
        path = self.path / "record.json"
        if not path.exists():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    @property
    def done(self) -> bool:
        """Whether the work is finished."""
        record = self.record
        return record is not None and record["state"] == "done"

    @property
    def results(self) -> dict[str, Any]:
        """Results of finished work."""
        record = self.record
        if record is None or record["state"] != "done":
            raise MissingInputError(f"{self.title} is not finished: no results in {self.path}")
        results: dict[str, Any] = record["results"]
        return results

    def differences(self, fingerprint: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Fields in which the work was begun under other settings: {field: (stored, wanted)}."""
        record = self.record
        wanted = json.loads(json.dumps(fingerprint))
        return fingerprint_difference(record["fingerprint"], wanted) if record is not None else {}

    def begun(self) -> bool:
        """Whether there is something that work under other settings must not take over."""
        record = self.record
        return record is not None and not self._kept_nothing(record)

    def running(self) -> bool:
        """Whether a living process holds the lock."""
        return _is_locked(self.path / "lock")

    @contextmanager
    def work(
        self, fingerprint: Mapping[str, Any], *, overwrite: bool = False, incomplete: bool = False
    ) -> Iterator[bool]:
        """Hold the folder for the work inside; yields False when it is done already under the same settings.

        `incomplete`: results that were recorded as done are not all there any more, so that there is work again.

        Raises `FingerprintMismatch` when it was begun under other settings (unless `overwrite`, which removes
        all of it first), `BusyError` when another process is at it.
        """
        wanted = json.loads(json.dumps(fingerprint))
        if self.done and not overwrite and not incomplete:
            self._refuse_other_settings(fingerprint)
            yield False
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("ab") as handle:
            if not _lock_soon(handle):
                raise BusyError(f"another process is working on {self.title} ({self.path}); wait for it or stop it")
            began: dict[str, Any] = {"fingerprint": wanted}
            record = self.record  # under the lock: another process may have finished meanwhile
            if overwrite or record is None:
                self._clear()  # without a record, what is left is of an --overwrite that was cut short
            elif not self._kept_nothing(record):
                self._refuse_other_settings(fingerprint)
                if record["state"] == "done" and not incomplete:
                    yield False
                    return
                began |= {"content": record["content"]} if "content" in record else {}
            for folder in (self.path, *(entry for entry in self.path.iterdir() if entry.is_dir())):
                files.remove_partials(folder)  # of a process that was killed
            self._write({"state": "started", **began})
            try:
                yield True
            except (Stopped, KeyboardInterrupt):
                raise
            except Exception as error:
                self._write({**(self.record or began), "state": "failed", "message": f"{error}"})
                raise

    def bind(self, what: str, content: str) -> None:
        """Tie the work inside `work` to the content of what it reads: a hash, kept in the record under the name `what`.

        Raises `FingerprintMismatch` when what was begun, and is continued now, read other content.
        """
        record = self.record
        if record is None:
            raise UniegoError(f"{self.title}: bound to {what} before it was begun")
        known = record.get("content", {})
        if known.get(what, content) != content:
            raise FingerprintMismatch(
                f"{self.title} in {self.path}",
                {what: (known[what], content)},
                f"{what} changed since the training began: restore them, or begin anew with --overwrite",
                how="was begun with other values",
            )
        self._write({**record, "content": {**known, what: content}})

    def _refuse_other_settings(self, fingerprint: Mapping[str, Any]) -> None:
        different = self.differences(fingerprint)
        if different:
            advice = "Restore those settings, or start this part anew with --overwrite; nothing was changed."
            raise FingerprintMismatch(f"{self.title} in {self.path}", different, advice)

    def _kept_nothing(self, record: Mapping[str, Any]) -> bool:
        """Whether begun work has left nothing but its record and logs: then other settings may take its place."""
        logs = {"record.json", "lock", "metrics.jsonl", "failures.jsonl", "tensorboard"}
        logs |= {"checkpoints", "snapshots", "view"}
        left = {entry.name for entry in self.path.iterdir()}
        checkpoints = self.path / "checkpoints"
        return record["state"] != "done" and left <= logs and not any(checkpoints.glob("step-*"))

    def finish(self, results: Mapping[str, Any]) -> None:
        """Record the work inside `work` as done. Call it last: everything the results name must be on disk."""
        record = self.record
        if record is None:
            raise UniegoError(f"{self.title}: finished before it was begun")
        self._write({**record, "state": "done", "results": results})

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.record != record:
            files.write_json(self.path / "record.json", record)

    def _clear(self) -> None:
        record = self.path / "record.json"
        record.unlink(missing_ok=True)  # first: without a record, what is left is nobody's
        for entry in self.path.iterdir():
            if entry.name == "lock":
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _lock_soon(handle: IO[bytes], *, shared: bool = False) -> bool:
    """Take the lock; a moment's patience, since `status` holds it while it looks."""
    for _ in range(20):
        if _try_lock(handle, shared=shared):
            return True
        time.sleep(0.05)
    return False


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as handle:
        return not _try_lock(handle)


def _try_lock(handle: IO[bytes], *, shared: bool = False) -> bool:
    """Take the lock without waiting; True on file systems that have no locks."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
