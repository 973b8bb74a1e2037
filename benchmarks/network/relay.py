"""Relay of one link: passes Ethernet frames between two interfaces, late, not all of them, or in one direction only.

    python relay.py MACHINE_SIDE SWITCH_SIDE        one JSON object a line on standard input: {"out": ..., "in": ...}

Each direction has `delay_ms`, `loss` (a share, 0 to 1) and `cut`; `out` is what the machine sends. `tc netem` does the
same where the kernel has it; many kernels of small virtual machines have not, and this needs packet sockets only. A
frame may be one large segment that the kernel has not split yet (GSO); it is lost or late as a whole. It ends with its
standard input, and is run as a file, without the project's packages.
"""

import contextlib
import heapq
import json
import os
import random
import select
import socket
import sys
import time
from typing import Any

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 3
LARGEST_FRAME = 1 << 17
MOST_WAITING = 20_000
"""Frames that wait at most; more are lost, as in the queue of a real device."""

Frame = tuple[float, int, int, bytes]
"""Due time, order of arrival, index of the socket that sends it, and the frame."""


def packet_socket(interface: str) -> socket.socket:
    """Return a socket for all frames that arrive at an interface, with their offloading header."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    opened.bind((interface, 0))
    opened.setblocking(False)
    return opened


def relay(machine_side: str, switch_side: str) -> None:
    """Pass frames until the standard input ends."""
    sockets = [packet_socket(machine_side), packet_socket(switch_side)]
    rules: list[dict[str, Any]] = [{}, {}]  # by the socket that receives: out, in
    waiting: list[Frame] = []
    chance, arrived, orders = random.Random(1), 0, b""
    print("ready", flush=True)
    while True:
        due_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([0, *(opened.fileno() for opened in sockets)], [], [], due_s)
        if 0 in readable:
            text = os.read(0, 65536)
            if not text:
                return
            *lines, orders = (orders + text).split(b"\n")
            for line in lines:
                given = json.loads(line)
                rules = [given["out"], given["in"]]
                print("set", flush=True)
        for side, opened in enumerate(sockets):
            if opened.fileno() not in readable:
                continue
            for frame in received(opened):
                rule = rules[side]
                if rule.get("cut") or chance.random() < rule.get("loss", 0.0) or len(waiting) >= MOST_WAITING:
                    continue
                arrived += 1
                heapq.heappush(waiting, (time.monotonic() + rule.get("delay_ms", 0.0) / 1e3, arrived, 1 - side, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, side, frame = heapq.heappop(waiting)
            send(sockets[side], frame)


def received(opened: socket.socket) -> list[bytes]:
    """Return the frames that have arrived, up to a hundred."""
    frames: list[bytes] = []
    with contextlib.suppress(OSError):  # also BlockingIOError: there are no more
        while len(frames) < 100:
            frames.append(opened.recv(LARGEST_FRAME))
    return frames


def send(opened: socket.socket, frame: bytes) -> None:
    """Send a frame; one that the device does not take is lost."""
    with contextlib.suppress(OSError):
        opened.send(frame)


if __name__ == "__main__":
    relay(*sys.argv[1:3])
