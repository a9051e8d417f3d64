"""A real Slurm on one node: munged, slurmctld and slurmd as children of the test, on the loopback interface.

Two partitions: jobs in `high` preempt those in `low` (the default), which are put back in the queue.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue", "sinfo")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=3
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=100000,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=5
MinJobAge=3600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdTimeout=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=4000 State=UNKNOWN
PartitionName=low  Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1  GraceTime=20 DefMemPerCPU=100
PartitionName=high Nodes={host} Default=NO  MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF DefMemPerCPU=100
"""


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """The folder of a running Slurm; SLURM_CONF names its configuration. Skips where it cannot be started."""
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started as root")
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: sockets have a longest name
    daemons: list[subprocess.Popen[bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", _path())
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            _begin(folder, daemons)
            yield folder
        finally:
            _end(daemons)
            shutil.rmtree(folder, ignore_errors=True)


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def _begin(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o700)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o400)
    folder.chmod(0o755)
    conf = CONF.format(
        host=socket.gethostname().split(".")[0],
        folder=folder,
        ports=_free_ports(),
        cores=os.cpu_count(),
    )
    (folder / "slurm.conf").write_text(conf)
    munge = [
        f"--{name}={folder}/munge/{name.split('-')[0]}" for name in ("key-file", "pid-file", "log-file", "seed-file")
    ]
    commands = [
        ["munged", "--foreground", f"--socket={folder}/munge.sock", *munge],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D"],
    ]
    for command in commands:
        with (folder / f"{command[0]}.out").open("wb") as out:
            daemons.append(subprocess.Popen(command, stdout=out, stderr=out))
        time.sleep(0.5)
    deadline = time.monotonic() + 30
    while "idle" not in _ask("sinfo", "-h", "-o", "%T"):
        if time.monotonic() > deadline:
            said = {
                path.name: path.read_text()[-500:] for path in folder.glob("*.*") if path.suffix in {".out", ".log"}
            }
            pytest.skip(f"Slurm does not come up here: {said}")
        time.sleep(0.2)


def _end(daemons: list[subprocess.Popen[bytes]]) -> None:
    """Cancel all jobs, wait until their processes are gone, then end the daemons."""
    steps = [process for process in psutil.process_iter(["name"]) if process.info["name"] == "slurmstepd"]
    _ask("scancel", "--partition=low", "--partition=high", "--user=root")
    for job in _ask("squeue", "-h", "-o", "%A").split():
        _ask("scancel", "--signal=KILL", "--full", job)
        _ask("scancel", job)
    psutil.wait_procs(steps, timeout=20)
    for daemon in reversed(daemons):
        family = psutil.Process(daemon.pid).children(recursive=True) if daemon.poll() is None else []
        daemon.terminate()
        try:
            daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        for child in psutil.wait_procs(family, timeout=2)[1]:
            child.kill()


def _free_ports() -> list[int]:
    probes = [socket.socket() for _ in range(2)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout


@pytest.fixture(scope="session")
def ask() -> Callable[..., str]:
    """What one of Slurm's programs prints."""
    return _ask


@pytest.fixture(scope="session")
def job() -> Callable[[str], dict[str, str]]:
    """What `scontrol show job` says of a job, by field."""

    def show(name: str) -> dict[str, str]:
        text = _ask("scontrol", "show", "job", "-o", name).splitlines()
        return dict(item.partition("=")[::2] for item in text[0].split() if "=" in item) if text else {}

    return show
