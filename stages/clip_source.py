"""Where training takes its frames from: the videos, or the clip store that `uniego prepare-clips` makes of them.

Draws are the same from either, and so are the frames' numbers; see docs/clip-store.md for what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..cache import ClipStore, RowKey, RowStatus
from ..errors import MissingInputError
from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.config import RunConfig
from ..pipeline.jpeg import decode
from ..pipeline.objects import is_url
from ..pipeline.rundir import Run
from ..pipeline.sources import Seen, identity, measure, read_sources
from ..pipeline.video import VideoError
from ..pipeline.video_info import Reason
from .batches import ClipReader, arranged

CLIP_STORE = "clip-store"
"""Name of the clip store's folder in a cache."""


def stored_clips(run: Run) -> list[Clip]:
    """The clips that the store holds: those that training, its validation and the export read (train and val)."""
    return [clip for clip in run.table().clips if clip.split != "test"]


def store_root(run: Run) -> Path:
    """Folder of the run's clip store."""
    config = run.config
    if config.clips.root is not None:
        return run.base / config.clips.root
    return (run.base if is_url(config.cache.root) else run.base / config.cache.root) / CLIP_STORE


def settings(config: RunConfig) -> dict[str, Any]:
    """What the configuration says about stored pixels; the decoder is named in `video`."""
    return config.clips.model_dump(include={"short_side", "quality", "fps"})


def source_fingerprint(config: RunConfig) -> dict[str, Any]:
    """What a training's fingerprint says about its source of frames: nothing where that is the videos."""
    return {"clips": settings(config)} if config.clips.source == "store" else {}


def look_at_videos(run: Run, clips: Sequence[Clip]) -> dict[str, Seen | int | None]:
    """What is seen of the ego videos now; of those that are not there any more, what was seen of them last."""
    known = read_sources(_sources_path(run)) if _sources_path(run).exists() else {}
    seen = measure([_ego_alone(clip) for clip in clips], known)
    return {name: cast("Any", known.get(name)) if found is None else found for name, found in seen.items()}


def record_videos(run: Run, seen: Mapping[str, Seen | int | None]) -> None:
    """Keep with the run what was seen of its ego videos."""
    path = _sources_path(run)
    if not path.exists() or read_sources(path) != seen:
        files.write_json(path, dict(seen))


def clip_keys(clips: Sequence[Clip], seen: Mapping[str, Seen | int | None]) -> list[RowKey]:
    """The clips as rows of the store: another video, or another segment of it, is another row."""
    return [RowKey(clip.clip_id, identity(_ego_alone(clip), seen)) for clip in clips]


def training_reader(run: Run) -> ClipReader:
    """What training, its validation and the export read the ego view with, by `clips.source`.

    For the store raises `MissingInputError` when there is none or clips are not in it, `FingerprintMismatch` for one
    made under other settings.
    """
    if run.config.clips.source == "videos":
        return ClipReader.from_config(run.config)
    store = ClipStore.open(store_root(run))
    store.refuse_other({"settings": store_settings(run.config)})
    clips = stored_clips(run)
    rows = store.index.rows(clip_keys(clips, look_at_videos(run, clips)))
    missing = [clip for clip, code in zip(clips, store.status(rows), strict=True) if code == RowStatus.PENDING]
    if missing:
        raise MissingInputError(
            f"{len(missing)} of {len(clips)} clips are not in the clip store {store.root} ({missing[0].clip_id}, …): "
            f"new or changed, or in a damaged shard; run `{run.command('prepare-clips')}`"
        )
    places = dict(zip((clip.clip_id for clip in clips), rows.tolist(), strict=True))
    return replace(StoredClipReader.from_config(run.config), root=store.root, rows=places)


def store_settings(config: RunConfig) -> dict[str, Any]:
    """Settings that decide about the store's content."""
    return {**settings(config), "backend": config.video.backend}


@dataclass(frozen=True)
class StoredClipReader(ClipReader):
    """A `ClipReader` that takes the frames out of a clip store. `rows`: where the clips are, by id."""

    root: Path = Path()
    rows: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: RunConfig, *_: Any) -> StoredClipReader:
        """The reader of a run for the student's network and the ego view."""
        return cast("StoredClipReader", super().from_config(config))

    def frames(self, clip: Clip, positions: Sequence[tuple[float, float]]) -> list[npt.NDArray[np.uint8]]:
        """Frames uint8 [T, h, w, 3] for every (start, phase), as large as they are stored. Raises `VideoError` for a
        clip that could not be stored, `IntegrityError` for a damaged one."""
        row = self.rows[clip.clip_id]
        store = self._store
        if not store.is_stored(row):
            failure = store.failure(row)
            reason, message = (failure.reason, failure.message) if failure else ("unreadable", "not in the clip store")
            raise VideoError(cast("Reason", reason), clip.ego_path, message)
        header = store.header(row)
        wanted, places = self._wanted(header.length, header.fps, header.has_duration, positions)
        images = store.images(row, header, header.nearest(wanted).tolist())
        try:
            frames = decode(images, header.height, header.width)
        except ValueError as error:
            raise store.damaged(row, error) from error
        return arranged(frames, places)

    @cached_property
    def _store(self) -> ClipStore:
        return ClipStore.open(self.root)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the store itself."""
        return {name: value for name, value in vars(self).items() if name != "_store"}


def _ego_alone(clip: Clip) -> Clip:
    return replace(clip, exo_path=None, pose_path=None, sources={"ego": clip.sources["ego"]})


def _sources_path(run: Run) -> Path:
    return run.base / "clips" / "sources.json"
