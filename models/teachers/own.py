"""Teachers of the user's own: a class named in the configuration, imported and checked."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from typing import cast

from ...errors import ConfigError, UniegoError
from .base import Teacher
from .config import TeacherConfig, View
from .weights import check_dim


def teacher_class(key: str, network: str) -> type[Teacher]:
    """The class that `package.module:Class` names.

    Python imports it as any module: it must be installed, or its folder be named in PYTHONPATH. Neither the run's
    folder nor the working directory is added to the search. Raises `ConfigError` when the module cannot be imported,
    has no such class, or the class is no complete `Teacher`.
    """
    field, (module_name, _, name) = f"teachers.{key}.network", network.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is run
        raise ConfigError(
            f"{field}: module {module_name} cannot be imported ({type(error).__name__}: {error}); install the package "
            "it is in, or name its folder in PYTHONPATH (the run's folder is not searched)"
        ) from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise ConfigError(f"{field}: {module_name} ({module.__file__}) has no class {name}")
    if not issubclass(found, Teacher):
        raise ConfigError(f"{field}: {name} is not a subclass of uniego.models.teachers.Teacher")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if not hasattr(found, "reads") or found.reads not in {"frames", "clip", "skeleton"}:
        missing.append("reads ('frames', 'clip' or 'skeleton')")
    if missing:
        raise ConfigError(f"{field}: {name} does not define {', '.join(missing)}")
    return found


def own_teacher(key: str, view: View, config: TeacherConfig) -> Teacher:
    """Build the configured class as `Class(key, view, config)`; its errors carry a note that names the teacher.

    Raises `ConfigError` as `teacher_class` does, for a source that cannot be hashed, and for a class that declares
    itself random without `allow_random`.
    """
    found = teacher_class(key, config.network)
    try:
        teacher = cast("Callable[[str, View, TeacherConfig], Teacher]", found)(key, view, config)
    except UniegoError:
        raise
    except Exception as error:
        error.add_note(f"while building teacher {key!r}, {config.network}")
        raise
    check_dim(key, config, teacher.dim)
    teacher.code_hash = _code_hash(key, found)
    if teacher.is_random and not config.allow_random:
        raise ConfigError(
            f"teacher {key!r} says that it is random: its features carry no knowledge; set "
            f"teachers.{key}.allow_random: true if that is what you want (tests, dry runs)"
        )
    return teacher


def _code_hash(key: str, found: type[Teacher]) -> str:
    """Hash (blake2b-128, hex) of the text of the file that the class is in, comments included."""
    module = inspect.getmodule(found)
    try:
        source = inspect.getsource(module) if module is not None else None
    except (OSError, TypeError):
        source = None
    if source is None:
        raise ConfigError(
            f"teachers.{key}.network: the source of {found.__module__} cannot be read, so features made by another "
            "version of it could not be told apart; put the class into a .py file"
        )
    return hashlib.blake2b(source.encode(), digest_size=16).hexdigest()
