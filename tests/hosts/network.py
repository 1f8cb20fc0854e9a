"""A few hosts on this machine, with a network of their own that can be cut, for as long as a test takes.

Each host has a name, a loopback and one address, and hangs on a switch by a cable. Nobody reaches it but the other hosts.
Files, processes and cores are those of the machine. A host lives in namespaces that have no name: when its last process
has ended they are gone, and its processes end with this one, however this one ends.

Needs root, and what ``tests/hosts/setup`` installs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
from programs import PATH, lacking, path_of

SUBNET = "10.77.0"
PROGRAMS = ("ip", "ss", "setpriv", "unshare", "nsenter")
SPACES = ("--net", "--uts")
INSIDE = """\
set -e
echo "$0" > /proc/sys/kernel/hostname
ip link set lo up
echo ready
exec sleep infinity
"""
"""What the first process of a host does. The host lives as long as it does."""


class Host:
    """A machine with a name and a network of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ""
        self._switch: Host | None = None
        self._port = ""
        self._started: list[subprocess.Popen[str]] = []
        self._first = subprocess.Popen(
            [*_mortal(), path_of("unshare"), *SPACES, "bash", "-c", INSIDE, name],
            env=_env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == "ready\n", f"the host {name} does not start"
        self._space = _space(self._first.pid)

    def start(self, *command: object, **more: Any) -> subprocess.Popen[str]:
        """A new process on this host; it ends with the thread that started it, or with the host."""
        args = [*_mortal(), *self._enter(), *map(str, command)]
        process = subprocess.Popen(args, text=True, stdin=subprocess.DEVNULL, start_new_session=True, **more)
        self._started.append(process)
        return process

    def run(self, *command: object, timeout: float = 60.0) -> str:
        """What a command on this host printed; it must succeed."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_env())
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{command} ended with {process.returncode}: {err}"
        return out

    def plug_in(self, switch: Host, number: int) -> None:
        """Get an address, and a cable to a switch."""
        self.address, self._switch, self._port = f"{SUBNET}.{number}", switch, f"port{number}"
        switch.run("ip", "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self._first.pid)
        switch.run("ip", "link", "set", self._port, "master", "switch", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    def cut_off(self) -> None:
        """Pull the cable: all that runs here goes on, and no connection is told of it."""
        assert self._switch is not None
        self._switch.run("ip", "link", "set", self._port, "down")

    def listening(self) -> set[tuple[str, int]]:
        """Address and port of each TCP socket here that waits for connections."""
        sockets = [line.split()[3].rsplit(":", 1) for line in self.run("ss", "-Hltn").splitlines()]
        return {(address, int(port)) for address, port in sockets}

    def processes(self) -> list[psutil.Process]:
        """All that runs on this host, but for the first process."""
        return [process for process in psutil.process_iter() if process.pid != self._first.pid and self._has(process.pid)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left running, and the host is gone."""
        while found := self.processes():
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, 5)
        self._first.kill()
        for ended in (*self._started, self._first):
            with ended:
                pass

    def _enter(self) -> list[str]:
        return [path_of("nsenter"), f"--target={self._first.pid}", *SPACES, "--"]

    def _has(self, process: int) -> bool:
        try:
            return _space(process) == self._space
        except OSError:
            return False


@contextmanager
def network(*names: str) -> Iterator[tuple[Host, ...]]:
    """Hosts with these names and the addresses 10.77.0.1, 10.77.0.2, .. that all reach one another.

    The thread that enters must live as long as the hosts.
    """
    with ExitStack() as held:
        switch, *hosts = [held.enter_context(Host(name)) for name in ("switch", *names)]
        switch.run("ip", "link", "add", "switch", "type", "bridge")
        switch.run("ip", "link", "set", "switch", "up")
        for number, host in enumerate(hosts, 1):
            host.plug_in(switch, number)
        yield tuple(hosts)


def missing() -> str:
    """What this machine lacks for hosts, or nothing."""
    if os.geteuid() != 0:
        return "hosts of one's own need root"
    if absent := lacking(PROGRAMS):
        return f"tests/hosts/setup was not run: no {absent}"
    trial = "ip link add switch type bridge && ip link add port1 type veth peer name eth0"
    tried = subprocess.run(["unshare", *SPACES, "bash", "-c", trial], env=_env(), capture_output=True, text=True)
    return f"no network namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def _mortal() -> list[str]:
    """What a command begins with that ends with the thread that starts it, however that ends."""
    return [path_of("setpriv"), "--pdeathsig", "KILL"]


def _space(process: int) -> int:
    """The network that a process is in."""
    return Path(f"/proc/{process}/ns/net").stat().st_ino


def _env() -> dict[str, str]:
    return {**os.environ, "PATH": PATH}
