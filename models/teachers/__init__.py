"""The frozen teachers: one interface, one module per kind of input, weights that are named and hashed."""

from __future__ import annotations

from .base import Precision, Teacher
from .config import TeacherConfig, View
from .facts import TEACHER_VIEWS, TEACHERS, TeacherFacts
from .precomputed import PrecomputedTeacher
from .registry import build_teacher, default_teachers, teacher_view, tiny_teachers
from .sources import WeightsSource, parse_source
from .stored import FeatureFileError
from .weights import required_source, state_hash

__all__ = [
    "TEACHERS",
    "TEACHER_VIEWS",
    "FeatureFileError",
    "Precision",
    "PrecomputedTeacher",
    "Teacher",
    "TeacherConfig",
    "TeacherFacts",
    "View",
    "WeightsSource",
    "build_teacher",
    "default_teachers",
    "parse_source",
    "required_source",
    "state_hash",
    "teacher_view",
    "tiny_teachers",
]
