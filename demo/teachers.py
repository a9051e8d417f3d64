"""The demo's nine teachers: six small networks that come with the package, trained on rendered clips.

They are of the same kinds as the paper's, learned by the same kinds of objective, and see the same views; how good
they are stands in `weights/README.md`. `examples/demo_teachers/` trains them anew. The two that learned from labels
exist for the demo's eight actions and for all twelve.
"""

from __future__ import annotations

from ..errors import UsageError
from ..models.teachers import TEACHERS, TeacherConfig
from .actions import ACTIONS, ALL_ACTIONS

IMAGE_SIZE = 48
"""Side in pixels that the single-frame networks were trained at; TimeSformer says its own."""

POSE_FRAMES = 24


SUPERVISED = ("timesformer", "stgcn")
"""Networks that learned the names of actions."""


def demo_teachers(actions: int = len(ACTIONS)) -> dict[str, TeacherConfig]:
    """The nine by key. Their weights are named `demo:<network>`, which holds wherever the package lies.

    `actions` is 8, or 12 for those of `ALL_ACTIONS`: `exo_rgb` and `exo_skl` know that many, the others know none.
    """
    endings = {len(ACTIONS): "", len(ALL_ACTIONS): str(len(ALL_ACTIONS))}
    if actions not in endings:
        raise UsageError(f"no teachers for {actions} actions; expected one of {', '.join(map(str, endings))}")
    return {
        key: TeacherConfig(
            network=facts.network,
            weights=f"demo:{facts.network}{endings[actions] if facts.network in SUPERVISED else ''}",
            feature=facts.feature,
            image_size=IMAGE_SIZE if facts.network in {"dinov2", "depth_anything"} else None,
            crop="hands" if key == "exo_skego" else None,
            pose_frames=POSE_FRAMES if facts.network == "stgcn" else 100,
        )
        for key, facts in TEACHERS.items()
    }
