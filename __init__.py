"""uniego: nine frozen ego-exo teachers, one encoder that needs the ego video alone.

import uniego
embedding = uniego.load("my-run").encode("clip.mp4")  # float32 [width]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .stages.encoder import Encoder, load

__all__ = ["Encoder", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for, so that `uniego --help` is quick."""
    if name in ("Encoder", "load"):
        from .stages import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
