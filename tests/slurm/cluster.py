"""A real SLURM cluster on this machine, for the duration of a test.

Each node is a `slurmd` with its own mounts, processes and host name. As on a cluster, its ``/tmp`` is not that of the machine
where jobs are submitted, process numbers are meaningless elsewhere, and everything left of a job is killed at its end.
Network, cores and all other folders are those of the machine. The GPUs are simulated: SLURM assigns them, but they cannot
compute.

This needs root, and what ``tests/slurm/setup`` installs.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

import psutil
from programs import PATH, lacking, path_of

LOOPBACK = "127.0.0.1"
PRIVATE = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
"""Folders that each node has for itself, empty except for `SOFTWARE`."""
SOFTWARE = {Path(__file__).resolve().parents[2], Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
"""Folders with software, which all nodes see wherever they are."""
START = 30.0
"""Seconds within which the nodes must be ready."""
TICK = 30.0
"""Seconds between SLURM's checks of time limits. A signal requested for S seconds before a job's end therefore arrives
S to S + 30 seconds before it, and a job ends up to 30 seconds late.
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv", "unshare")
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}({loopback})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job starts when its first credential has expired: after 2 minutes by default.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
GresTypes=gpu,lscratch
ReturnToService=2
MinJobAge=86400
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=30
SlurmdTimeout=20
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdPidFile={folder}/run/%n.pid
SlurmdLogFile={folder}/log/%n
SlurmdSpoolDir={folder}/spool/%n
SlurmdParameters=config_overrides
Epilog={folder}/epilog
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
NODE = "NodeName={node} NodeAddr={loopback} Port={port} CPUs=2 RealMemory=4000 Gres=gpu:{gpus},lscratch:50 State=UNKNOWN\n"
CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"
EPILOG = """\
#!/bin/bash
for place in /proc/[0-9]*; do
    process=${place#/proc/}
    [ "$process" = $$ ] || ! grep -qsxz "SLURM_JOB_ID=$SLURM_JOB_ID" "$place/environ" || kill -KILL "$process"
done
exit 0
"""
"""Script that kills what is left of a job on a node at its end, as control groups do."""
INSIDE = """\
set -e
node=$1 folder=$2 private=$3
shift 3
for place; do mkdir -p "$folder/software/$place"; mount --bind "$place" "$folder/software/$place"; done
for place in $private; do mount -t tmpfs -o mode=1777 tmpfs "$place"; done
for place; do mkdir -p "$place"; mount --bind "$folder/software/$place" "$place"; done
mount --bind "$folder/hosts" /etc/hosts
echo "$node" > /proc/sys/kernel/hostname
slurmd -D -N "$node"
exit
"""
"""The program of a node's first process. It stays as the parent of orphaned processes."""


class Job(TypedDict):
    """A job, as SLURM reports it."""

    id: str
    """The job's id; a task of an array has its own."""
    name: str
    state: str
    node: str
    """The node, or nodes as ``n[1-2]``; empty while the job waits."""
    restarts: int
    reason: str


class SlurmCluster:
    """A running cluster."""

    def __init__(self, folder: Path, nodes: int, gpus: int) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        """Folder shared by all nodes and this machine."""
        self.nodes = tuple(f"n{number}" for number in range(1, nodes + 1))
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        """Environment of a process that submits. It needs only ``SLURM_CONF``."""
        self.env["SLURM_CONF"] = str(folder / "slurm.conf")
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._configure(gpus)

    def run(self, *command: object, stdin: str = "", timeout: float = 60.0) -> str:
        """Run a command, such as ``srun``, in the shared folder and return its output. The command must succeed."""
        args = list(map(str, command))
        options: dict[str, Any] = {"env": self.env, "cwd": self.scratch, "capture_output": True, "text": True}
        done = subprocess.run(args, input=stdin, timeout=timeout, **options)
        assert done.returncode == 0, f"{args} ended with {done.returncode}: {done.stderr}"
        return str(done.stdout).strip()

    def submit(self, script: str, *options: object) -> str:
        """Submit shell commands as a batch job that prints to ``slurm-ID.out`` in the shared folder, and return its id."""
        return self.run("sbatch", "--parsable", "--open-mode=append", *options, stdin=f"#!/bin/bash\n{script}\n")

    def output(self, job: str) -> str:
        """Return the output of a batch job so far."""
        path = self.scratch / f"slurm-{job}.out"
        return path.read_text() if path.exists() else ""

    def jobs(self, *, ended: bool = False) -> list[Job]:
        """Return all jobs that wait, run or are ending and, if requested, those that have ended."""
        found = [_job(line) for line in self.run("scontrol", "-o", "show", "jobs").splitlines() if line.startswith("JobId=")]
        return [job for job in found if ended or job["state"] not in ENDED]

    def job(self, job: str) -> Job:
        """Return a job, ended or not."""
        return _job(self.run("scontrol", "-o", "show", "job", job))

    def state(self, job: str) -> str:
        """Return a state such as ``RUNNING``. The job may have ended."""
        return self.job(job)["state"]

    def wait_until(self, predicate: Callable[[], object], seconds: float = 60.0) -> float:
        """Wait until a condition holds, and return the seconds that took. Fail if it takes too long."""
        began = time.monotonic()
        while not predicate():
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"not so after {seconds} s. Jobs: {self.jobs(ended=True)}")
            time.sleep(0.1)
        return time.monotonic() - began

    def wait_for(self, job: str, *states: str, seconds: float = 60.0) -> float:
        """Wait until a job is in one of these states, or has ended if none is given. Return the seconds that took."""
        return self.wait_until(lambda: self.state(job) in (states or ENDED), seconds)

    def cancel_all(self) -> None:
        """Cancel all jobs and wait for their ends."""
        self.run("scancel", "--user=root")
        self.wait_until(lambda: not self.jobs())

    def end_in(self, job: str, seconds: int) -> None:
        """Change the end of a running job's time. SLURM checks it only twice a minute: see `TICK`."""
        self.run("scontrol", "update", f"JobId={job}", f"EndTime=now+{seconds}")

    def kill_node(self, node: str) -> None:
        """Kill all processes of a node at once, as a power failure would. SLURM is told, since it notices slowly."""
        self._kill(node)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")

    def start_node(self, node: str) -> None:
        """Start a node that is not running, without the former content of its private folders."""
        spaces = ("--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc")
        hidden = sorted(place for place in SOFTWARE if _is_private(place))
        private = " ".join(map(str, PRIVATE))
        self._start(node, "unshare", *spaces, "bash", "-c", INSIDE, "node", node, self.folder, private, *hidden)

    def start(self) -> None:
        """Start the daemons and wait for the nodes."""
        munge = self.folder / "munge"
        private = [f"--{what}-file={munge / what}" for what in ("key", "log", "pid", "seed")]
        self._start("munged", "munged", "--foreground", f"--socket={munge / 'socket'}", *private, user="munge")
        self._await((munge / "socket").exists)
        self._start("slurmctld", "slurmctld", "-D", "-i")
        for node in self.nodes:
            self.start_node(node)
        self._await(self._idle)

    def stop(self) -> None:
        """Stop everything."""
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scancel", "--user=root"], env=self.env, capture_output=True, timeout=5)
        for node in self.nodes:
            if node in self._daemons:
                self._kill(node)
        for process in reversed(self._daemons.values()):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _configure(self, gpus: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        for name in ("scratch", "log", "run", "state", "munge", "devices", "spool", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        controller, *ports = _free_ports(1 + len(self.nodes))
        host = socket.gethostname()
        conf = SLURM_CONF.format(host=host, loopback=LOOPBACK, port=controller, folder=self.folder)
        gres = ""
        for node, port in zip(self.nodes, ports, strict=True):
            gres += f"NodeName={node} Name=lscratch Count=50\n"
            conf += NODE.format(node=node, loopback=LOOPBACK, port=port, gpus=gpus)
            for gpu in range(gpus):
                device = self.folder / "devices" / f"{node}-gpu{gpu}"
                os.mknod(device, 0o20666, os.makedev(1, 3))  # like /dev/null
                gres += f"NodeName={node} Name=gpu File={device} Flags=nvidia_gpu_env\n"
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text(gres)
        (self.folder / "cgroup.conf").write_text(CGROUP_CONF)
        hosts = Path("/etc/hosts").read_text()
        (self.folder / "hosts").write_text(f"{hosts.rstrip()}\n{LOOPBACK} {' '.join(self.nodes)}\n")
        (self.folder / "epilog").write_text(EPILOG)
        (self.folder / "epilog").chmod(0o755)
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(64))
        for path in (key.parent, key):
            shutil.chown(path, "munge", "munge")

    def _start(self, name: str, program: str, *arguments: object, user: str | None = None) -> None:
        """Start a daemon that ends with this process, however this process ends."""
        command = ["setpriv", "--pdeathsig", "KILL", path_of(program), *map(str, arguments)]
        env = self.env | {"PATH": PATH}
        with (self.folder / "log" / f"{name}.out").open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                command, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=user, start_new_session=True
            )

    def _kill(self, node: str) -> None:
        process = self._daemons.pop(node)
        if process.poll() is None:
            for first in psutil.Process(process.pid).children():
                first.kill()
                first.wait(10)  # it goes last: the system ends all others of its namespace first
        process.kill()
        process.wait()

    def _idle(self) -> bool:
        asked = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
        said = subprocess.run(asked, env=self.env, capture_output=True, text=True, timeout=START).stdout
        return set(said.split()) == set(self.nodes)

    def _await(self, ready: Callable[[], bool]) -> None:
        """Wait until the daemons are ready. If one fails, show what it printed."""
        began = time.monotonic()
        while not ready():
            for name, process in self._daemons.items():
                assert process.poll() is None, f"{name} ended with {process.returncode}: {self._log(name)}"
            assert time.monotonic() - began < START, "\n".join(map(self._log, self._daemons))
            time.sleep(0.1)

    def _log(self, name: str) -> str:
        """Return the end of a daemon's log."""
        paths = (self.folder / "log" / name, self.folder / "log" / f"{name}.out")
        return "".join(f"{path}:\n{path.read_text()[-2000:]}" for path in paths if path.exists())


@contextmanager
def slurm_cluster(folder: Path, nodes: int = 3, gpus: int = 1) -> Iterator[SlurmCluster]:
    """Run a cluster of nodes ``n1``, ``n2``, .. with 2 CPUs, 4000 MB and some GPUs each.

    The folder must be new or empty, and not in a `PRIVATE` one. It is removed at the end, including its shared folder.
    The thread that enters must live as long as the cluster.
    """
    assert not _is_private(folder), f"{folder} would not be seen by the nodes"
    cluster = SlurmCluster(folder.resolve(), nodes, gpus)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def missing() -> str:
    """Return what this machine lacks for a cluster, or nothing."""
    if os.geteuid() != 0:
        return "a SLURM cluster of one's own needs root"
    if absent := lacking(PROGRAMS):
        return f"tests/slurm/setup was not run: no {absent}"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "true"], capture_output=True, text=True)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def _is_private(folder: Path) -> bool:
    return any(folder.resolve().is_relative_to(place) for place in PRIVATE)


def _job(line: str) -> Job:
    """Parse a job from its line of ``scontrol -o show job``."""

    def field(name: str) -> str:
        found = re.search(rf"(?:^| ){name}=(.*?)(?= [A-Z][A-Za-z/:]*=|$)", line)
        return "" if found is None or found[1] == "(null)" else found[1]

    return {
        "id": field("JobId"),
        "name": field("JobName"),
        "state": field("JobState"),
        "node": field("NodeList"),
        "restarts": int(field("Restarts")),
        "reason": field("Reason"),
    }


def _free_ports(count: int) -> list[int]:
    """Return ports that are free, below those that the system assigns."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
