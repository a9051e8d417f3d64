"""`uniego encode --dense`: features of untrimmed videos in the layout that public heads read.

OUT/features/<video>.npy    float32 [D, T]: feature i stands for the seconds i * step .. (i + 1) * step
OUT/dense.json              what they were made with, and of which videos; before the first of them is written
OUT/failures.csv            videos that are not there, with their reasons (only where there are any)
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CoverageError, FingerprintMismatch, UsageError, fingerprint_difference
from ..pipeline import files, segmentation
from ..pipeline.clips import Clip
from ..pipeline.config import ComputeConfig
from ..pipeline.decode import DecodeJob
from ..pipeline.decoders import Decoders
from ..pipeline.progress import count, say
from ..pipeline.rundir import TaskFolder
from ..pipeline.signals import StopFlag
from ..pipeline.sliding import Sliding
from ..pipeline.video import backend_identity
from .batches import ClipFailure
from .compute import prepare
from .dense import Slider, video_identities, write_dense
from .embeddings import FORMATS
from .encode import EncodeOptions
from .encoder import WEIGHTS, load, model_folder
from .video_list import VideoList

NOTE, FAILURES = "dense.json", "failures.csv"


def encode_dense(
    videos: VideoList, out: Path, model: str | Path, sliding: Sliding, options: EncodeOptions
) -> dict[str, Any]:
    """Features of every video, whole, into the folder `out`; returns what dense.json says.

    A table stands for its ego videos. Videos that cannot be decoded are left out, listed in failures.csv, and tried
    again by the same command, which also continues after a stop or a kill, with the same bytes, and takes in videos
    that have come since. Raises `FingerprintMismatch` where `out` holds features of other settings or of another video
    of the same name, `UsageError` where it holds features of unknown origin and for two videos of one name,
    `CoverageError` when fewer videos than `min_coverage` have features, or none has, `Stopped` when asked to stop.
    """
    _refuse(videos, out, options)
    device = prepare(
        ComputeConfig.model_validate(
            {"device": options.device, "precision": options.precision, "threads": options.threads}
        )
    )
    encoder = load(model)
    named = named_videos(videos.clips())
    slider = Slider(
        encoder.model, encoder.reader, sliding, options.precision, options.batch, options.workers, options.timeout_s
    )
    settings = slider.fingerprint(files.hash_file(model_folder(model) / WEIGHTS))
    settings["decoder"] = backend_identity(encoder.reader.backend)
    folder = _Folder(out)
    with (
        StopFlag() as flag,
        TaskFolder(out.with_name(f"{out.name}.work"), f"the features in {out}").work(
            settings, overwrite=options.overwrite
        ),
    ):
        folder.begin(settings, video_identities(named), overwrite=options.overwrite)
        left = [name for name in named if not folder.has(name)]
        if left:
            encoder.to(device)
            say(
                f"encode: {len(left)} of {count(len(named), 'video')}, a window of {sliding.window_s:g} s every "
                f"{sliding.step_s:g} s, on {device} in {options.precision}, {count(options.workers, 'decoder')}; into "
                f"{out}"
            )
        else:
            say(f"encode: {out} is finished, nothing to do")
        failures = write_dense(slider, named, out, flag)
        note = folder.finish(named, failures, encoder.reader.backend, min(1, options.workers))
    files.remove_tree(out.with_name(f"{out.name}.work"))
    there = len(named) - len(failures)
    say(f"  {count(there, 'video')} encoded, {len(failures)} failed")
    if not there or there < options.min_coverage * len(named):
        raise CoverageError(
            f"{there} of {count(len(named), 'video')} have features; {out / FAILURES} says why the others have none. "
            "Mend the files and run again" + (", or lower --min-coverage" if there else "")
        )
    return note


def _refuse(videos: VideoList, out: Path, options: EncodeOptions) -> None:
    if videos.every is not None:
        raise UsageError("--every cuts videos into clips, --dense takes them whole: give --step, not --every")
    if options.logits:
        raise UsageError("--logits are of clips: --dense writes features alone")
    if out.suffix in FORMATS:
        raise UsageError(f"--out {out}: --dense writes a folder, with features/<video>.npy in it")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: --dense writes a folder")


def named_videos(clips: Sequence[Clip]) -> dict[str, Path]:
    """The videos of clips, each once, by the names of their files without the suffix.

    Raises `UsageError` naming both for two of one name.
    """
    named: dict[str, Path] = {}
    for clip in clips:
        path = clip.ego_path
        other = named.setdefault(path.stem, path)
        if other != path:
            raise UsageError(
                f"{other} and {path} would both be features/{path.stem}.npy, since the field names videos by their "
                "files: rename one, or encode them into two folders"
            )
    return named


@dataclass(frozen=True)
class _Folder:
    """The output folder."""

    path: Path

    def has(self, name: str) -> bool:
        """Whether a video's features are there: they are written whole or not at all."""
        return segmentation.features_path(self.path, name).exists()

    def note(self) -> dict[str, Any] | None:
        """dense.json, if there is one."""
        path = self.path / NOTE
        if not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def begin(self, settings: Mapping[str, Any], identities: Mapping[str, str], *, overwrite: bool) -> None:
        """Say what the folder will hold; features of the same settings and videos stay, others are refused."""
        features, note = self.path / segmentation.FEATURES, self.note()
        if note is None and any(features.glob("*.npy")):
            raise UsageError(f"{features} holds features of unknown origin: name another folder")
        videos: dict[str, Any] = {} if note is None else note["videos"]
        if note is not None and overwrite:
            for name in videos:
                segmentation.features_path(self.path, name).unlink(missing_ok=True)
            (self.path / NOTE).unlink()  # last: until then it is true of what is left
            videos = {}
        elif note is not None:
            stored = {**note["settings"], "videos": {n: videos[n]["identity"] for n in videos if self.has(n)}}
            same = {n: identities.get(n, stored["videos"][n]) for n in stored["videos"]}
            wanted = json.loads(json.dumps({**settings, "videos": same}))
            different = fingerprint_difference(stored, wanted)
            if different:
                advice = "Name another folder, or make it anew with --overwrite; nothing was changed."
                raise FingerprintMismatch(f"what is in {self.path}", different, advice)
        if features.exists():
            files.remove_partials(features)  # of a process that was killed
        merged = {**videos, **{n: {**videos.get(n, {}), "identity": identity} for n, identity in identities.items()}}
        self._write(settings, merged)

    def finish(
        self, named: Mapping[str, Path], failures: Sequence[ClipFailure], backend: str, workers: int
    ) -> dict[str, Any]:
        """Say of each video how long it is and how many frames a second it has; list those that are not there."""
        note = self.note()
        assert note is not None
        videos = note["videos"]
        new = [name for name in named if self.has(name) and "fps" not in videos[name]]
        jobs = (DecodeJob(str(named[name]), None, None, (), backend) for name in new)
        with Decoders(jobs, workers) as decoders:
            for name, found in zip(new, decoders, strict=True):
                features = np.load(segmentation.features_path(self.path, name), mmap_mode="r", allow_pickle=False)
                fps = None if found.shape is None else found.shape.fps
                videos[name] |= {"file": named[name].name, "fps": fps, "features": features.shape[1]}
        for name in set(videos) - {name for name in videos if self.has(name)}:
            del videos[name]
        path = self.path / FAILURES
        if failures:
            out = io.StringIO()
            writer = csv.writer(out, lineterminator="\n")
            writer.writerows([("video", "reason", "message"), *failures])
            files.write_bytes(path, out.getvalue().encode())
        else:
            path.unlink(missing_ok=True)
        return self._write(note["settings"], videos)

    def _write(self, settings: Mapping[str, Any], videos: Mapping[str, Any]) -> dict[str, Any]:
        note = {"format": 1, "settings": dict(settings), "videos": dict(sorted(videos.items()))}
        files.write_json(self.path / NOTE, note)
        return note
