"""Frames of clips as small JPEG images inside the page, within a budget of bytes that all sections share."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from ...pipeline import jpeg
from ...pipeline.clips import Clip, View
from ...pipeline.decode import Decoded, DecodeJob
from ...pipeline.decoders import Decoders
from ...pipeline.rundir import Run

PICTURES = 3_400_000
"""Characters of pictures in a page: what a page of 5 MB leaves for them."""
_QUALITIES = (85, 75, 60, 45, 30)
_BYTES, _BYTES_PER_PIXEL = 700, 0.35  # of a picture before it is written as text; a coarser one is taken above that
_MOST_DECODERS = 2

Box = tuple[int, int]
"""Width and height in pixels that a picture must fit into."""


@dataclass(frozen=True)
class Picture:
    """A picture for the page, or a named gap. `alt`: what it shows; `source`: a data URI, empty where `reason` says why
    there is none; `width`, `height`: pixels."""

    alt: str
    source: str = ""
    width: int = 4
    height: int = 3
    reason: str = ""


class Budget:
    """Characters of data URIs that may still go into the page; the sections draw from one of them, in their order."""

    def __init__(self, characters: int = PICTURES) -> None:
        self.left = characters

    def spend(self, characters: int) -> None:
        """Take room for something else that is large."""
        self.left = max(0, self.left - characters)

    def picture(self, frame: npt.NDArray[np.uint8], box: Box, alt: str) -> Picture:
        """A frame uint8 [H, W, 3] made to fit `box`, never enlarged; a gap with its reason when no room is left."""
        image = Image.fromarray(np.ascontiguousarray(frame))
        image.thumbnail(box, Image.Resampling.LANCZOS, reducing_gap=None)
        small, data = np.asarray(image), b""
        for quality in _QUALITIES:
            data = jpeg.encode(small, quality)
            if len(data) <= _BYTES + _BYTES_PER_PIXEL * image.width * image.height:
                break
        source = "data:image/jpeg;base64," + base64.b64encode(data).decode()
        if len(source) > self.left:
            return Picture(alt, "", image.width, image.height, "left out: the report has no room for more pictures")
        self.left -= len(source)
        return Picture(alt, source, image.width, image.height)


class Wanted(NamedTuple):
    """A number of frames spread over a clip's video of a view."""

    clip: Clip
    view: View
    frames: int


class Looked(NamedTuple):
    """What was wanted and what came of it; `error`: why there are no frames, None where there are.

    frames: uint8 [n, H, W, 3], numbers: int64 [n], which frames of the clip they are. length: of the clip.
    """

    wanted: Wanted
    frames: npt.NDArray[np.uint8] | None
    numbers: npt.NDArray[np.int64]
    length: int
    error: str | None


def look(run: Run, wanted: Sequence[Wanted]) -> Iterator[Looked]:
    """Decode what is wanted, in its order. A video that is not there or does not decode says why, and no other one
    takes its place. Raises `OSError` if the machine keeps failing."""
    there = [item for item in wanted if item.clip.video(item.view) is not None]
    jobs = [
        DecodeJob(str(i.clip.video(i.view)), i.clip.start_s, i.clip.end_s, (i.frames,), run.config.video.backend)
        for i in there
    ]
    workers = min(run.config.compute.workers, _MOST_DECODERS) if jobs else 0
    with Decoders(jobs, workers, timeout_s=run.config.extract.decode_timeout_s) as decoded:
        results = iter(decoded)
        for item in wanted:
            if item.clip.video(item.view) is None:
                yield _nothing(item, f"the clip table names no {item.view} video for it")
            else:
                yield _looked(item, next(results))


def _looked(item: Wanted, decoded: Decoded) -> Looked:
    if decoded.frames is None:
        error = decoded.error
        return _nothing(item, "not decoded" if error is None else f"{error.args[2]} ({error.reason})")
    places = decoded.places(item.frames)
    assert decoded.numbers is not None
    return Looked(item, decoded.frames[places], decoded.numbers[places], decoded.length, None)


def _nothing(item: Wanted, why: str) -> Looked:
    return Looked(item, None, np.zeros(0, np.int64), 0, why)


def shown(looked: Looked, budget: Budget, box: Box, alt: str) -> list[Picture]:
    """The frames as pictures; one gap with its reason where there are none."""
    if looked.frames is None:
        return [Picture(alt, reason=str(looked.error))]
    return [budget.picture(frame, box, alt) for frame in looked.frames]


def render(template: str, **values: Any) -> Markup:
    """A template of this package, filled in; everything that is no `Markup` is escaped."""
    return Markup(_templates().get_template(template).render(**values))


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("uniego.stages.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["commands"] = _commands
    return environment


def _commands(text: str) -> Markup:
    """Escaped, with what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one of them opens nothing
        return escape(text)
    code = Markup("<code>{}</code>")
    return Markup().join(code.format(part) if place % 2 else escape(part) for place, part in enumerate(parts))
