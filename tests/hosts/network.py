"""Simulate several hosts on this machine, in a network that can be cut, for the duration of a test.

Each host has a name, a loopback interface, one address, and a cable to a switch. Only the other hosts can reach it. Files,
processes and cores are those of the machine. A host consists of unnamed namespaces, which vanish with its last process. Its
processes end with this one, however this one ends.

This needs root, and what ``tests/hosts/setup`` installs.
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
"""The program of a host's first process. The host lives as long as it does."""


class Host:
    """A machine with its own name and network."""

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
        """Start a process on this host. It ends with the thread that started it, or with the host."""
        args = [*_mortal(), *self._enter(), *map(str, command)]
        process = subprocess.Popen(args, text=True, stdin=subprocess.DEVNULL, start_new_session=True, **more)
        self._started.append(process)
        return process

    def run(self, *command: object, timeout: float = 60.0) -> str:
        """Return the output of a command on this host. The command must succeed."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_env())
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{command} ended with {process.returncode}: {err}"
        return out

    def plug_in(self, switch: Host, number: int) -> None:
        """Connect this host to the switch, with an address."""
        self.address, self._switch, self._port = f"{SUBNET}.{number}", switch, f"port{number}"
        switch.run("ip", "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self._first.pid)
        switch.run("ip", "link", "set", self._port, "master", "switch", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    def cut_off(self) -> None:
        """Pull the cable. Processes here continue, and their connections are not closed."""
        assert self._switch is not None
        self._switch.run("ip", "link", "set", self._port, "down")

    def listening(self) -> set[tuple[str, int]]:
        """Return the address and port of each listening TCP socket on this host."""
        sockets = [line.split()[3].rsplit(":", 1) for line in self.run("ss", "-Hltn").splitlines()]
        return {(address, int(port)) for address, port in sockets}

    def processes(self) -> list[psutil.Process]:
        """Return all processes on this host except the first."""
        return [process for process in psutil.process_iter() if process.pid != self._first.pid and self._has(process.pid)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes and remove the host."""
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
    """Start hosts with these names and the addresses 10.77.0.1, 10.77.0.2, .. that can all reach one another.

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
    """Return what this machine lacks for hosts, or nothing."""
    if os.geteuid() != 0:
        return "hosts of one's own need root"
    if absent := lacking(PROGRAMS):
        return f"tests/hosts/setup was not run: no {absent}"
    trial = "ip link add switch type bridge && ip link add port1 type veth peer name eth0"
    tried = subprocess.run(["unshare", *SPACES, "bash", "-c", trial], env=_env(), capture_output=True, text=True)
    return f"no network namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def _mortal() -> list[str]:
    """Return the prefix of a command that ends with the thread that starts it, however the thread ends."""
    return [path_of("setpriv"), "--pdeathsig", "KILL"]


def _space(process: int) -> int:
    """Return the network namespace of a process."""
    return Path(f"/proc/{process}/ns/net").stat().st_ino


def _env() -> dict[str, str]:
    return {**os.environ, "PATH": PATH}
