"""A sample of a table's clips, decoded: what does not decode, and what the others look like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ..pipeline.clips import Clip, ClipTable, View
from ..pipeline.sampling import spread_indices
from ..pipeline.video import VideoError, open_video, segment

Picture = npt.NDArray[np.uint8]

PICKS, TILE, GAP, TITLE, CLIPS_PER_SHEET = 4, 144, 4, 18, 8


@dataclass
class Looked:
    """What decoding a sample gave: pictures by clip id and view, uint8 [H, W, 3]; or an error of clip, view."""

    pictures: dict[tuple[str, View], list[Picture]] = field(default_factory=dict)
    errors: dict[tuple[str, View], VideoError] = field(default_factory=dict)


def sample(clips: Sequence[Clip], most: int, seed: int = 0) -> list[Clip]:
    """At most so many of the clips, those of the smallest draws from (seed, clip id), in the order of these."""

    def draw(clip: Clip) -> bytes:
        return hashlib.blake2b(f"look\0{seed}\0{clip.clip_id}".encode(), digest_size=8).digest()

    return sorted(clips, key=draw)[:most]


def moments(clip: Clip, view: View, count: int, backend: str) -> list[Picture]:
    """`count` frames spread over the clip, uint8 [H, W, 3] each. Raises `VideoError`."""
    path = clip.video(view)
    if path is None:
        return []
    with open_video(path, backend) as video:
        first, end = segment(video.info, clip.start_s, clip.end_s)
        return list(video.frames(first + spread_indices(end - first, count)))


def look(clips: Sequence[Clip], backend: str = "pyav", done: Callable[[], None] = lambda: None) -> Looked:
    """Decode both views of the clips. An `OSError` of the machine passes."""
    looked = Looked()
    views: tuple[View, ...] = ("ego", "exo")
    for clip in clips:
        for view in views:
            try:
                pictures = moments(clip, view, PICKS, backend)
            except VideoError as error:
                looked.errors[clip.clip_id, view] = error
            else:
                looked.pictures[clip.clip_id, view] = [thumbnail(picture) for picture in pictures]
        done()
    return looked


def thumbnail(picture: Picture) -> Picture:
    """The picture, its longer side `TILE` pixels, uint8 [h, w, 3]."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((TILE, TILE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def write_sheets(table: ClipTable, clips: Sequence[Clip], looked: Looked, folder: Path) -> list[Path]:
    """Contact sheets `sheet-001.jpg`, …: a row per clip, its moments from ego on the left, from exo on the right."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, len(clips), CLIPS_PER_SHEET):
        path = folder / f"sheet-{start // CLIPS_PER_SHEET + 1:03d}.jpg"
        _sheet(table, clips[start : start + CLIPS_PER_SHEET], looked).save(path, quality=85)
        paths.append(path)
    return paths


def _sheet(table: ClipTable, clips: Sequence[Clip], looked: Looked) -> Image.Image:
    side, row = PICKS * (TILE + GAP) + 2 * GAP, TILE + TITLE + GAP
    sheet = Image.new("RGB", (2 * side, len(clips) * row), "white")
    draw = ImageDraw.Draw(sheet)
    for line, clip in enumerate(clips):
        top = line * row
        draw.text((GAP, top + 3), _title(table, clip), fill="black")
        for column, view in enumerate(("ego", "exo")):
            key: tuple[str, View] = (clip.clip_id, "ego" if view == "ego" else "exo")
            error = looked.errors.get(key)
            if error is not None or not looked.pictures.get(key):
                text = error.reason if error is not None else "none"
                draw.text((column * side + GAP, top + TITLE + TILE // 2), f"{view}: {text}", fill="black")
            for place, picture in enumerate(looked.pictures.get(key, ())):
                left = column * side + GAP + place * (TILE + GAP)
                sheet.paste(Image.fromarray(picture), (left, top + TITLE))
    return sheet


def _title(table: ClipTable, clip: Clip) -> str:
    name = clip.extra.get("class_name") or (
        table.classes[clip.label] if clip.label < len(table.classes) else str(clip.label)
    )
    text = f"{clip.clip_id}   {clip.split}   {name}   {clip.ego_path.name} | "
    text += clip.exo_path.name if clip.exo_path is not None else "no exo"
    return text.encode("latin-1", "replace").decode("latin-1")  # what the built-in font can draw
