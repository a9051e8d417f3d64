"""What is looked at before any network is built: the output's folder, and the files that the table names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..cache.index import LOCK_FILE
from ..errors import UniegoError, UsageError
from ..models.teachers import TeacherConfig, teacher_view
from ..models.teachers.config import PRECOMPUTED, View
from ..pipeline import files
from ..pipeline.clips import Clip, missing_files
from ..pipeline.objects import is_url
from ..pipeline.progress import warn
from ..pipeline.rundir import Run
from .extract_options import ExtractOptions


def check_output(run: Run) -> None:
    """Refuse a cache folder that cannot be written."""
    try:
        with files.locked(run.cache_root / LOCK_FILE):
            pass
    except OSError as error:
        raise UniegoError(
            f"features cannot be written to {run.cache_root}: {error.strerror}; make the folder writable, or set "
            "cache.root to another one"
        ) from error


def check_options(run: Run, options: ExtractOptions, overwrite: bool) -> None:
    """Refuse what several processes cannot do together."""
    several = options.share is not None and options.share.count > 1
    if overwrite and several:
        raise UsageError(
            "--overwrite with --num-tasks: every task would remove what the others have written; remove the teachers' "
            f"folders in {run.cache_root} first, then start the tasks without --overwrite"
        )
    if is_url(run.config.cache.root) and (several or options.engine == "dask" or (options.workers or 1) > 1):
        raise UsageError(
            f"cache.root {run.config.cache.root} is object storage, which has no locks: one process writes there. "
            "Use a folder that all processes see, and `uniego cache export` afterwards"
        )


def check_files(run: Run, keys: Sequence[str], strict: bool) -> None:
    """Warn of files that do not exist; refuse them when `strict`."""
    read = set().union(*(_columns(key, run.config.teachers[key]) for key in keys))
    missing = [entry for entry in missing_files(run.table()) if entry[1] in read]
    if not missing:
        return
    shown = "\n".join(f"  {clip.clip_id}: {column} {path}" for clip, column, path in missing[:10])
    more = f"\n  and {len(missing) - 10} more" if len(missing) > 10 else ""
    message = f"{len(missing)} files that the table names do not exist:\n{shown}{more}"
    if strict:
        raise UniegoError(f"{message}\nmend the table, or leave --strict away to go on without these clips")
    warn(f"{message}\nthese clips will be recorded as failed (missing)")


def check_shared(
    find: Callable[[str, str | None], str | None], view: View, title: str, clips: Sequence[Clip]
) -> set[str]:
    """The stored entries that clips take; one that would stand for two different pieces of video is refused.

    `find` gives the entry of a clip's id and its video's stem; the error names both clips.
    """
    taken: dict[str, tuple[Clip, tuple[object, ...]]] = {}
    for clip in clips:
        path = clip.video(view)
        entry = find(clip.clip_id, None if path is None else path.stem)
        if entry is None:
            continue
        piece = (path, clip.start_s, clip.end_s)
        other, others_piece = taken.setdefault(entry, (clip, piece))
        if others_piece != piece:
            raise UsageError(
                f"{title}: the stored feature {entry!r} would stand for clip {other.clip_id!r} "
                f"({_piece(others_piece)}) and for clip {clip.clip_id!r} ({_piece(piece)}); store one feature per "
                "clip, called by the clip's id"
            )
    return set(taken)


def _columns(key: str, config: TeacherConfig) -> set[str]:
    """Columns of the table whose files a teacher may read."""
    return set() if config.network == PRECOMPUTED else {f"{teacher_view(key, config)}_path", "pose_path"}


def _piece(piece: tuple[object, ...]) -> str:
    path, start, end = piece
    return f"{path}" + (f", {start or 0} to {end or 'its end'} s" if start is not None or end is not None else "")
