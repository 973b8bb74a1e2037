"""Links of the rig: each machine's cable to the switch, which can be cut, delayed and made to lose packets."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from control_plane.core.model.errors import SteerwayError

Direction = Literal["both", "in", "out"]
"""As the machine sees it: `out` is what it sends."""

BRIDGE = "br0"
RELAY = Path(__file__).with_name("relay.py")
ANSWER_WITHIN_S = 10.0


class Switch:
    """Network namespace with the bridge. It has no name and ends with the process that made it."""

    def __init__(self) -> None:
        script = f"ip link add {BRIDGE} type bridge; ip link set {BRIDGE} up; ip link set lo up; echo ready; read end"
        self._process = subprocess.Popen(
            ["unshare", "--net", "sh", "-ec", f"echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; {script}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        expect(self._process, "ready", "the switch")

    def run(self, command: str) -> None:
        """Run commands in the switch's namespace. Raises `SteerwayError`."""
        words = [*self.inside(), "sh", "-ec", command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_WITHIN_S, check=False)
        if done.returncode:
            raise SteerwayError(f"`{command}` failed in the switch: {done.stderr.strip()}")

    def inside(self) -> list[str]:
        """Return the words that run a command in its namespace."""
        return ["nsenter", "-t", str(self._process.pid), "-n"]

    def close(self) -> None:
        """End it, and with it the bridge."""
        end(self._process)


class Link:
    """Cable from a machine to the switch. Every change holds until the next one; `heal` undoes all."""

    def __init__(self, switch: Switch, number: int, machine_pid: int, address: str) -> None:
        self._switch, self._port, self._pid = switch, f"p{number}", machine_pid
        self._outer, self._inner = f"r{number}", f"s{number}"
        self._relay: subprocess.Popen[str] | None = None
        self._rules: dict[str, dict[str, float]] = {"in": {}, "out": {}}
        switch.run(
            f"ip link add {self._port} type veth peer name eth0 netns {machine_pid}; "
            f"ip link set {self._port} master {BRIDGE}; ip link set {self._port} up"
        )
        inside = ["nsenter", "-t", str(machine_pid), "-n", "sh", "-ec"]
        up = f"ip addr add {address}/24 dev eth0; ip link set eth0 up; ip link set lo up"
        subprocess.run([*inside, up], check=True, timeout=ANSWER_WITHIN_S)

    def cut(self, direction: Direction = "both") -> None:
        """Let nothing pass. The interface stays up: nobody is told, as with a switch that has failed."""
        if direction == "both":
            self._switch.run(f"ip link set {self._outer if self._relay else self._port} nomaster")
            return
        self._rules[direction]["cut"] = 1.0
        self._shape()

    def delay(self, ms: float) -> None:
        """Deliver everything `ms` milliseconds later, in both directions."""
        for rule in self._rules.values():
            rule["delay_ms"] = ms
        self._shape()

    def loss(self, percent: float) -> None:
        """Lose this share of the packets, in both directions."""
        for rule in self._rules.values():
            rule["loss"] = percent / 100
        self._shape()

    def heal(self) -> None:
        """Let everything pass again, at once."""
        if self._relay is not None:
            end(self._relay)
            self._relay = None
            self._switch.run(f"ip link del {self._outer}")
        self._rules = {"in": {}, "out": {}}
        self._switch.run(f"ip link set {self._port} master {BRIDGE}")

    def flap(self, times: int, down_s: float, up_s: float) -> None:
        """Cut and heal the link so many times; blocks. It is healed afterwards."""
        for _ in range(times):
            self.cut()
            time.sleep(down_s)
            self.heal()
            time.sleep(up_s)

    def close(self) -> None:
        """End the relay, if there is one."""
        if self._relay is not None:
            end(self._relay)
            self._relay = None

    def _shape(self) -> None:
        """Put the relay between the port and the bridge, and tell it the rules."""
        if self._relay is None:
            self._switch.run(
                f"ip link add {self._outer} type veth peer name {self._inner}; "
                f"ip link set {self._outer} up; ip link set {self._inner} up"
            )
            command = [*self._switch.inside(), sys.executable, "-ISE", str(RELAY), self._port, self._inner]
            relay = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            expect(relay, "ready", "the relay")
            self._switch.run(
                f"ip link set {self._port} nomaster; ip link set {self._outer} master {BRIDGE}; "
                f"ip link set {self._port} promisc on; ip link set {self._inner} promisc on"
            )
            self._relay = relay
        assert self._relay.stdin is not None
        self._relay.stdin.write(json.dumps(self._rules) + "\n")
        self._relay.stdin.flush()
        expect(self._relay, "set", "the relay")


def expect(process: "subprocess.Popen[str]", line: str, what: str) -> None:
    """Wait for a line of a process. Raises `SteerwayError` if it ends instead."""
    assert process.stdout is not None
    if process.stdout.readline().strip() != line:
        raise SteerwayError(f"{what} of the rig ended with exit code {process.wait(ANSWER_WITHIN_S)}")


def end(process: "subprocess.Popen[str]") -> None:
    """End a process of the rig by closing its standard input, then by SIGKILL."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    try:
        process.wait(ANSWER_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
