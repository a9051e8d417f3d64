"""Inside a Slurm job: what it is called, and putting it back in the queue when it was asked to stop.

A job that only exits, with whatever code, is over for Slurm: so a stage that was stopped by a signal asks for its job
to run again before it ends.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess

from ..errors import EXIT_OK, EXIT_STOPPED
from .launch import place
from .signals import STOP_SIGNALS

_ANSWER = 30.0  # seconds to wait for Slurm's answer


def job_name() -> str | None:
    """The batch job that this process runs in, as `scontrol` wants it: "123", "120_3" for a task of an array.

    None elsewhere. The number of an array's last task is that of the whole array, so tasks are never named by it.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> str | None:
    """Put the job that this process runs in back in the queue; its name, None where that is not to be.

    Not outside Slurm, not in an interactive job, not where requeueing is switched off, and not when the job was
    cancelled: it shall not come back. Of several processes (torchrun) the first asks.
    """
    job = job_name()
    if job is None or place().rank > 0:
        return None
    for number in STOP_SIGNALS:  # requeueing signals this process once more
        signal.signal(number, signal.SIG_IGN)
    shown = _scontrol("show", "job", "-o", job)
    said = dict(re.findall(r"(\w+)=(\S*)", shown or ""))
    again = said.get("BatchFlag") == "1" and said.get("Requeue") == "1" and said.get("JobState") == "RUNNING"
    return job if again and _scontrol("requeue", job) is not None else None


def stopped_exit_code() -> int:
    """What a process that was asked to stop exits with: 0 when its job was put back in the queue, 75 elsewhere."""
    return EXIT_STOPPED if requeue() is None else EXIT_OK


def _scontrol(*arguments: str) -> str | None:
    """What Slurm answers; None where it refuses, does not answer or is not installed."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=_ANSWER, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
