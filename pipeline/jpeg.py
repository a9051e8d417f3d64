"""Frames as JPEG images: every frame is decoded by itself, wherever it lies in a clip.

Colours keep their full resolution (4:4:4): at equal size that loses less than halving it at a higher quality.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features

Frames = npt.NDArray[np.uint8]


def codec_identity() -> dict[str, str]:
    """What decides the bytes of an image, for fingerprints: Pillow's version and its JPEG library's."""
    turbo = features.version_feature("libjpeg_turbo")
    library = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return {"pillow": PIL.__version__, "library": library}


def encode(frame: Frames, quality: int) -> bytes:
    """One frame uint8 [H, W, 3], RGB, as a JPEG image; `quality` 1 to 100."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def decode(images: Sequence[bytes], height: int, width: int) -> Frames:
    """Frames uint8 [n, height, width, 3] of JPEG images of that size. Raises ValueError for anything else."""
    frames: Frames = np.empty((len(images), height, width, 3), dtype=np.uint8)
    for place, data in enumerate(images):
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                frame = np.asarray(image)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"no JPEG image: {error}") from error
        if frame.shape != (height, width, 3):
            raise ValueError(f"a JPEG image {list(frame.shape)} where [{height}, {width}, 3] was wanted")
        frames[place] = frame
    return frames
