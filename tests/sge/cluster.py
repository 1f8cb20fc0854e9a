"""A real SGE on this machine, for the duration of a test: a host of its own with two slots, which also submits.

The host is a set of namespaces: it has its own mounts, processes, name and network. Its ``/usr`` shows the software that
``tests/sge/setup`` unpacked. Cores and all other folders are those of the machine. This needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from programs import PATH, lacking, path_of

SOFTWARE = Path("/var/lib/emseg-sge-software")
"""Where ``tests/sge/setup`` unpacks the packages."""
LIBRARIES = "/usr/lib/gridengine"
"""Folder of the programs, on the host."""
START = 60.0
"""Seconds within which the host must be ready."""
PROGRAMS = ("ip", "mount", "nsenter", "setpriv", "unshare")
SPACES = ("--mount", "--net", "--uts", "--pid")

BOOTSTRAP = """\
admin_user none
default_domain none
ignore_fqdn true
spooling_method classic
spooling_lib libspoolc
spooling_params {root}/default/common;{root}/spool/qmaster
binary_path {libraries}
qmaster_spool_dir {root}/spool/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
"""
SLOTS = """\
pe_name smp
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""
INSIDE = f"""\
set -e
software=$1
for name in lib share; do mount -t overlay overlay -o "lowerdir=$software/usr/$name:/usr/$name" "/usr/$name"; done
echo node > /proc/sys/kernel/hostname
ip link set lo up
ip link add net0 type veth peer name net1
ip address add 10.78.0.1/24 dev net0
ip link set net0 up
ip link set net1 up
mount --bind "$SGE_ROOT/hosts" /etc/hosts
cd "$SGE_ROOT"
resources=/usr/share/gridengine/util/resources
changed() {{ sed -E "s/^($1 +).*/\\1$2/"; }}
changed execd_spool_dir "${{SGE_ROOT//\\//\\\\/}}\\/spool\\/execd" < /usr/share/gridengine/default-configuration \\
    | changed 'min_[ug]id' 0 | changed load_report_time 00:00:02 > configuration
{LIBRARIES}/spoolinit classic libspoolc "$SGE_ROOT/default/common;$SGE_ROOT/spool/qmaster" init
{LIBRARIES}/spooldefaults configuration "$SGE_ROOT/configuration"
{LIBRARIES}/spooldefaults complexes $resources/centry
{LIBRARIES}/spooldefaults usersets $resources/usersets
{LIBRARIES}/spooldefaults managers root
{LIBRARIES}/sge_qmaster &
until qconf -sh > /dev/null 2>&1; do sleep 0.2; done
qconf -as node
{LIBRARIES}/sge_execd &
qconf -Ap slots
qconf -sq | changed qname all.q | changed hostlist node | changed slots 2 | changed pe_list smp \\
    | changed load_thresholds NONE | changed shell '\\/bin\\/bash' > queue
qconf -Aq queue
qconf -ssconf | changed schedule_interval 0:0:1 | changed 'flush_(submit|finish)_sec' 1 > scheduler
qconf -Msconf scheduler
until qstat -f | grep -q 'all.q@node .* lx-amd64 *$'; do sleep 0.2; done
touch ready
exec sleep infinity
"""
"""The program of the host's first process. The host lives as long as it does."""


class SgeCluster:
    """A running host with SGE."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        root = folder / "root"
        for path in ("default/common", "spool/qmaster/job_scripts", "spool/execd", "../scratch"):
            (root / path).mkdir(parents=True)
        (root / "default" / "common" / "bootstrap").write_text(BOOTSTRAP.format(root=root, libraries=LIBRARIES))
        (root / "default" / "common" / "act_qmaster").write_text("node\n")
        (root / "slots").write_text(SLOTS)
        (root / "hosts").write_text("127.0.0.1 localhost\n10.78.0.1 node\n")
        self._root = root
        self.env = os.environ | {
            "PATH": f"{LIBRARIES}:{PATH}",
            "SGE_ROOT": str(root),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": "6444",
            "SGE_EXECD_PORT": "6445",
            "SGE_ND": "1",  # daemons stay in the foreground
        }
        """Environment of a process that submits."""

    def start(self) -> None:
        """Start the host and wait until its queue takes jobs."""
        spaces = (*SPACES, "--propagation=private", "--fork", "--kill-child", "--mount-proc")
        mortal = (path_of("setpriv"), "--pdeathsig", "KILL")
        command = [*mortal, path_of("unshare"), *spaces, "bash", "-c", INSIDE, "node", SOFTWARE]
        with (self.folder / "log").open("wb") as log:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self._host = subprocess.Popen([*map(str, command)], env=self.env, **options)
        self.wait_until(lambda: (self._root / "ready").exists() or self._host.poll() is not None, START)
        assert self._host.poll() is None, (self.folder / "log").read_text()[-2000:]

    def run(self, *command: object, check: bool = True, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run a command on the host, in the shared folder, and return how it ended. It must succeed if `check` is set."""
        with self.started(*command) as process:
            out, err = process.communicate(timeout=timeout)
        assert not check or process.returncode == 0, f"{command} ended with {process.returncode}: {err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def started(self, *command: object) -> subprocess.Popen[str]:
        """Start a command on the host, in the shared folder."""
        (first,) = psutil.Process(self._host.pid).children()
        enter = [path_of("nsenter"), f"--target={first.pid}", *SPACES, f"--wd={self.scratch}", "--"]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*enter, *map(str, command)], env=self.env, text=True, **options)

    def jobs(self) -> dict[str, str]:
        """Return the state of each job that has not ended, by its number; those that end have a ``d``."""
        lines = self.run("qstat").stdout.splitlines()[2:]
        return {words[0]: words[4] for words in map(str.split, lines)}

    def wait_until(self, predicate: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait until a condition holds. Fail if it takes too long."""
        began = time.monotonic()
        while not predicate():
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"not so after {seconds} s: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End all processes of the host, which ends with its first one."""
        if self._host.poll() is None:
            for first in psutil.Process(self._host.pid).children():
                first.kill()
                first.wait(10)
        self._host.kill()
        self._host.wait()


@contextmanager
def sge_cluster(folder: Path) -> Iterator[SgeCluster]:
    """Run SGE in a new folder, which is removed at the end. The thread that enters must live as long as the cluster."""
    cluster = SgeCluster(folder.resolve())
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def missing() -> str:
    """Return what this machine lacks for a cluster, or nothing."""
    if os.geteuid() != 0:
        return "an SGE of one's own needs root"
    if absent := lacking(PROGRAMS):
        return f"tests/sge/setup was not run: no {absent}"
    if not SOFTWARE.exists():
        return "tests/sge/setup was not run"
    overlay = f"mount -t overlay overlay -o lowerdir={SOFTWARE}/usr/lib:/usr/lib /usr/lib"
    trial = f"{overlay} && ip link add net0 type veth peer name net1"
    tried = subprocess.run(
        ["unshare", *SPACES, "--fork", "bash", "-c", trial], env=os.environ | {"PATH": PATH}, capture_output=True, text=True
    )
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""
