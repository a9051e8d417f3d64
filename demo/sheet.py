"""The picture sheet: what each view and modality of a few clips looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr
from PIL import Image, ImageDraw

from ..models.graphs import GRAPHS
from ..pipeline.clips import Clip, read_clip_table
from ..pipeline.poses import read_pose
from ..pipeline.sampling import spread_indices
from ..pipeline.video import open_video, segment

Picture = npt.NDArray[np.uint8]

PICKS, TILE, GAP, TITLE = 3, 112, 4, 22
_MODALITIES = ("ego video", "exo video", "ego depth", "exo depth", "skeleton")


def write_sheet(table: Path, path: Path, *, clips: int = 8) -> Path:
    """Draw one clip of every class (at most `clips`): three moments of both videos, their depths, the skeleton."""
    chosen = _one_per_class(table)[:clips]
    block, row = PICKS * (TILE + GAP) + 2 * GAP, TILE + TITLE
    sheet = Image.new("RGB", (len(_MODALITIES) * block, TITLE + len(chosen) * row), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(_MODALITIES):
        draw.text((column * block + GAP, GAP), name, fill="black")
    classes = read_clip_table(table).classes
    for line, clip in enumerate(chosen):
        top = TITLE + line * row
        draw.text((GAP, top + GAP), f"{classes[clip.label]}  ({clip.clip_id}, {clip.split})", fill="black")
        for column, tiles in enumerate(_tiles(clip)):
            for place, tile in enumerate(tiles):
                image = Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.BICUBIC)
                sheet.paste(image, (column * block + GAP + place * (TILE + GAP), top + TITLE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _one_per_class(table: Path) -> list[Clip]:
    """A clip of every class, as far as possible of different people."""
    chosen: dict[int, Clip] = {}
    people: set[str] = set()
    for fresh in (True, False):
        for clip in read_clip_table(table).clips:
            if clip.label not in chosen and not (fresh and clip.extra["subject"] in people):
                chosen[clip.label] = clip
                people.add(clip.extra["subject"])
    return [chosen[label] for label in sorted(chosen)]


def _tiles(clip: Clip) -> list[list[Picture]]:
    """The pictures of each modality, in the order of `_MODALITIES`."""
    assert clip.exo_path is not None
    ego, exo = _frames(clip, clip.ego_path), _frames(clip, clip.exo_path)
    return [ego, exo, _depth(clip, clip.ego_path), _depth(clip, clip.exo_path), _skeleton(clip, exo)]


def _picks(clip: Clip, path: Path) -> npt.NDArray[np.int64]:
    with open_video(path) as video:
        first, end = segment(video.info, clip.start_s, clip.end_s)
    return first + spread_indices(end - first, PICKS)


def _frames(clip: Clip, path: Path) -> list[Picture]:
    picks = _picks(clip, path)
    with open_video(path) as video:
        return list(video.frames(picks.tolist()))


def _depth(clip: Clip, video: Path) -> list[Picture]:
    """Near is bright."""
    array = zarr.open_array(str(video.parent.parent / "depth" / f"{video.stem}.zarr"), mode="r")
    depth = np.asarray(array)[_picks(clip, video)].astype(np.float32)
    near, far = np.quantile(depth, (0.01, 0.99))
    grey = np.clip(255 * (far - depth) / max(far - near, 1.0), 0, 255).astype(np.uint8)
    return [np.repeat(frame[..., None], 3, axis=2) for frame in grey]


def _skeleton(clip: Clip, frames: list[Picture]) -> list[Picture]:
    """Joints and bones over the dimmed exo frames."""
    assert clip.exo_path is not None
    assert clip.pose_path is not None
    with open_video(clip.exo_path) as video:
        fps = video.info.fps
    pose = read_pose(
        clip.pose_path,
        clip_id=clip.clip_id,
        video_stem=clip.exo_path.stem,
        start_s=clip.start_s,
        end_s=clip.end_s,
        fps=fps,
    )
    moments = spread_indices(pose.keypoints.shape[1], PICKS)
    return [_draw_bones(f, pose.keypoints[0, m]) for f, m in zip(frames, moments, strict=True)]


def _draw_bones(frame: Picture, joints: npt.NDArray[np.float32]) -> Picture:
    scale = 4
    image = Image.fromarray(frame // 3).resize((frame.shape[1] * scale, frame.shape[0] * scale))
    draw = ImageDraw.Draw(image)
    for child, parent in GRAPHS["coco"].bones:
        ends = [tuple(float(v) for v in (joints[j, :2] + 0.5) * scale) for j in (child, parent)]
        sure = min(joints[child, 2], joints[parent, 2]) > 0.5
        draw.line([ends[0], ends[1]], fill=(255, 200, 40) if sure else (120, 110, 90), width=5)
    return np.asarray(image)
