#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""record-stream.py - records both directions of a real x-colo migration stream, for the parser tests.

    record-stream.py QEMU-SYSTEM-X86_64 NAME [-m 4] [--raw] [--checkpoints 4] [--capability CAP]... [QEMU OPTION...]

starts two QEMUs without disk, migrates one into the other through a relay, takes checkpoints and writes
NAME-forward.gz and NAME-return.gz. --raw leaves capability return-path off (QEMU 7.2; QEMU 11 refuses
x-colo without it). The guest is a few bytes of firmware that dirty the lower 128 KiB for ever, so that
the recording compresses well. test-colo-forward.c and test-colo-return.c parse the recordings:

    record-stream.py QEMU test-colo-qemu-11.1
    record-stream.py QEMU test-colo-qemu-11.1-uuid --checkpoints 1 --capability validate-uuid -uuid UUID
"""
import argparse
import gzip
import json
import os
import selectors
import socket
import subprocess
import tempfile
import threading
import time

DEADLINE_S = 20

# start: mov eax,cr3; mov cr3,eax (flushes the TLB); xor ax,ax
# page: mov ds,ax; inc word [0]; add ax,0x100; cmp ah,0x20; jb page; jmp start
GUEST = bytes.fromhex("0f20d8 0f22d8 31c0 8ed8 ff060000 050001 80fc20 72f2 ebe8")
RESET_VECTOR = bytes.fromhex("ea000000f0")  # jmp f000:0000


def firmware(directory):
    path = os.path.join(directory, "firmware")
    with open(path, "wb") as out:
        out.write(GUEST.ljust(0xFFF0, b"\0") + RESET_VECTOR.ljust(16, b"\0"))
    return path


class Qemu:
    def __init__(self, program, directory, name, memory, options):
        self.path = os.path.join(directory, name + ".qmp")
        self.process = subprocess.Popen(
            [program, "-M", "pc", "-m", memory, "-nodefaults", "-display", "none", "-S",
             "-accel", "tcg", "-qmp", f"unix:{self.path},server=on,wait=off", *options])
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.connect(self.path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self.stream = self.sock.makefile("rw")
        self.events = []
        self.version = json.loads(self.stream.readline())["QMP"]["version"]
        self.run("qmp_capabilities")

    def run(self, command, **arguments):
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.stream.flush()
        while True:
            message = json.loads(self.stream.readline())
            if "event" in message:
                self.events.append(message["event"])
            elif "error" in message:
                raise RuntimeError(f"{command}: {message['error']['desc']}")
            else:
                return message["return"]

    def capabilities(self, args):
        names = [*([] if args.raw else ["return-path"]), *args.capability, "x-colo"]
        self.run("migrate-set-capabilities",
                 capabilities=[{"capability": name, "state": True} for name in names])


class Relay(threading.Thread):
    """Copies both directions and keeps the bytes."""

    def __init__(self, listener, target):
        super().__init__(daemon=True)
        self.listener, self.target = listener, target
        self.forward, self.back = bytearray(), bytearray()

    def run(self):
        primary, _ = self.listener.accept()
        secondary = socket.socket(socket.AF_UNIX)
        secondary.connect(self.target)
        selector = selectors.DefaultSelector()
        selector.register(primary, selectors.EVENT_READ, (secondary, self.forward))
        selector.register(secondary, selectors.EVENT_READ, (primary, self.back))
        while True:
            for key, _ in selector.select():
                data = key.fileobj.recv(1 << 17)
                if not data:
                    return
                key.data[1].extend(data)
                try:
                    key.data[0].sendall(data)
                except OSError:
                    return


def wait(what, condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited too long for {what}")
        time.sleep(0.005)


def record(args, options, directory):
    options = ["-bios", firmware(directory), *options]
    incoming = os.path.join(directory, "incoming")
    outgoing = os.path.join(directory, "outgoing")
    secondary = Qemu(args.qemu, directory, "secondary", args.memory, [*options, "-incoming", "defer"])
    primary = Qemu(args.qemu, directory, "primary", args.memory, options)
    try:
        secondary.capabilities(args)
        secondary.run("migrate-incoming", uri="unix:" + incoming)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(outgoing)
        listener.listen(1)
        relay = Relay(listener, incoming)
        relay.start()
        primary.capabilities(args)
        primary.run("migrate-set-parameters", **{"x-checkpoint-delay": 1000000})
        primary.run("cont")
        primary.run("migrate", uri="unix:" + outgoing)
        wait("state colo", lambda: primary.run("query-migrate")["status"] == "colo")
        wait("READY", lambda: relay.back[-4:] == b"\0\0\0\0")
        for i in range(args.checkpoints):
            wait("running", lambda: primary.run("query-status")["status"] == "running")
            before = len(relay.back)
            primary.run("migrate-set-parameters", **{"x-checkpoint-delay": 1000000 - i - 1})
            wait("LOADED", lambda: len(relay.back) >= before + 12)
            time.sleep(0.05)  # nothing may follow; the recording shows it
        forward, back = bytes(relay.forward), bytes(relay.back)
    finally:
        for qemu in (primary, secondary):
            qemu.process.kill()
            qemu.process.wait()
    for name, data in (("forward", forward), ("return", back)):
        with open(f"{args.name}-{name}.gz", "wb") as out, \
                gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=9, mtime=0) as zipped:
            zipped.write(data)
    print(primary.version["qemu"], "forward", len(forward), "return", len(back))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("qemu")
    parser.add_argument("name")
    parser.add_argument("-m", dest="memory", default="4")
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--capability", action="append", default=[])
    parser.add_argument("--checkpoints", type=int, default=4)
    args, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as directory:
        record(args, options, directory)


if __name__ == "__main__":
    main()
