"""The demo's nine teachers: six small networks that come with the package, trained on rendered clips.

They are of the same kinds as the paper's, learned by the same kinds of objective, and see the same views; how good
they are stands in `weights/README.md`. `examples/demo_teachers/` trains them anew.
"""

from __future__ import annotations

from ..models.teachers import TEACHERS, TeacherConfig

IMAGE_SIZE = 48
"""Side in pixels that the single-frame networks were trained at; TimeSformer says its own."""

POSE_FRAMES = 24


def demo_teachers() -> dict[str, TeacherConfig]:
    """The nine by key. Their weights are named `demo:<network>`, which holds wherever the package lies."""
    return {
        key: TeacherConfig(
            network=facts.network,
            weights=f"demo:{facts.network}",
            feature=facts.feature,
            image_size=IMAGE_SIZE if facts.network in {"dinov2", "depth_anything"} else None,
            crop="hands" if key == "exo_skego" else None,
            pose_frames=POSE_FRAMES if facts.network == "stgcn" else 100,
        )
        for key, facts in TEACHERS.items()
    }
