#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A process that takes QEMU's arguments and fails as some QEMU does.

usage: test-selftest-fake-qemu.py MODE LOG QEMU-ARGUMENTS...

LOG gets a line with the pid at each start. Nothing but the standard library, since it is started
often.
"""
import json
import os
import socket
import sys
import time

GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": "Fake 1"},
        "capabilities": ["oob"],
    }
}


def fail(text, status=1):
    print(text, file=sys.stderr, flush=True)
    sys.exit(status)


class Fake:
    def __init__(self, mode, arguments):
        self.mode = mode
        self.secondary = "-incoming" in arguments
        self.path = arguments[arguments.index("-qmp") + 1][len("unix:") :].split(",")[0]
        self.stream = None
        self.started = False

    def send(self, message):
        self.stream.write(json.dumps(message).encode() + b"\r\n")
        self.stream.flush()

    def event(self, name, data=None):
        message = {"timestamp": {"seconds": 1, "microseconds": 0}, "event": name}
        if data:
            message["data"] = data
        self.send(message)

    def enter_colo(self):
        self.started = True
        self.event("STOP")
        if self.mode != "stays-stopped":
            self.event("RESUME")

    def checkpoint(self):
        if self.mode == "crashes":
            os.abort()
        if self.mode == "hangs-before":
            return
        self.event("STOP")
        if self.mode == "leaves-colo":
            self.event("COLO_EXIT", {"mode": "primary", "reason": "error"})
        elif self.mode != "hangs":
            self.event("RESUME")

    def migration(self):
        if self.mode == "completes":
            return {"status": "completed"}
        if self.mode == "fails":
            return {"status": "failed", "error-desc": "the fake does not like it"}
        if self.mode == "stays-active":
            return {"status": "active"}
        return {"status": "colo"}

    def set_capabilities(self, names):
        if self.mode == "no-replication":
            raise ValueError("QEMU compiled without replication module can't enable COLO")
        if self.mode == "old" and "return-path" in names:
            raise ValueError("the test wants x-colo alone")
        if self.mode != "old" and "return-path" not in names:
            raise ValueError("Capability 'x-colo' requires capability 'return-path'")

    def answer(self, command, arguments):
        """The value to return; an exception's text is the error of a GenericError."""
        if command == "query-migrate-capabilities":
            names = ["xbzrle", "return-path", "x-colo"]
            if self.mode == "no-capability":
                names.remove("x-colo")
            return [{"capability": name, "state": False} for name in names]
        if command == "migrate-set-capabilities":
            self.set_capabilities([item["capability"] for item in arguments["capabilities"]])
        if command == "migrate" and self.mode == "completes":
            # In truth the secondary's, whose arrival before the status is the point.
            self.event("COLO_EXIT", {"mode": "secondary", "reason": "error"})
        if command == "migrate" and self.mode != "stays-active":
            self.enter_colo()
        if command == "migrate-set-parameters":
            self.checkpoint()
        if command == "query-migrate":
            return self.migration()
        if command == "human-monitor-command":
            ip = "0000fff0" if self.mode == "guest-stuck" else "000f06c3"
            return f"EAX=00000000\r\nEIP={ip} EFL=00000002\r\n"
        return {}

    def serve(self):
        server = socket.socket(socket.AF_UNIX)
        server.bind(self.path)
        server.listen()
        self.stream = server.accept()[0].makefile("rwb")
        if self.mode == "not-qmp":
            self.stream.write(b"220 ready\r\n")
            self.stream.flush()
            time.sleep(60)
        self.send(GREETING)
        for line in self.stream:
            request = json.loads(line)
            command = request.get("execute") or request.get("exec-oob")
            reply = {"id": request["id"]}
            if self.mode == "drops" and command == "migrate":
                self.stream.close()
                time.sleep(60)
            try:
                reply["return"] = self.answer(command, request.get("arguments"))
            except ValueError as error:
                reply["error"] = {"class": "GenericError", "desc": str(error)}
            self.send(reply)


def main():
    mode, log, *arguments = sys.argv[1:]
    # One write: two of us may start at once.
    with open(log, "ab", buffering=0) as out:
        out.write(b"%d\n" % os.getpid())
    if mode == "exits":
        fail("first line\n-M pc: \x1b[31munsupported machine type\n")
    if mode == "no-kvm":
        fail("qemu: failed to initialize kvm: Permission denied")
    if mode == "no-library":
        fail("libfoo.so.1: cannot open shared object file", 127)
    if mode == "floods":
        sys.stderr.write("noise\n" * 200000)
        fail("last words after the flood")
    if mode == "silent":
        time.sleep(60)
    Fake(mode, arguments).serve()


main()
