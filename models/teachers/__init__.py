"""The frozen teachers: one interface, one module per kind of input, weights that are named and hashed."""

from __future__ import annotations

from .base import Teacher
from .config import TeacherConfig
from .registry import (
    TEACHER_VIEWS,
    TEACHERS,
    TeacherFacts,
    build_teacher,
    default_teachers,
    teacher_view,
    tiny_teachers,
)
from .sources import WeightsSource, parse_source

__all__ = [
    "TEACHERS",
    "TEACHER_VIEWS",
    "Teacher",
    "TeacherConfig",
    "TeacherFacts",
    "WeightsSource",
    "build_teacher",
    "default_teachers",
    "parse_source",
    "teacher_view",
    "tiny_teachers",
]
