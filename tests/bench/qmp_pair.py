# SPDX-License-Identifier: LGPL-2.1-or-later
"""qmp_pair.py - two QEMUs of the lab's guest on a plain UNIX socket, driven by a few QMP commands.

The measure for our tunnel: the same QEMU, guest, devices and checkpoint interval, and nothing between the two.
"""
import os
import shutil
import socket
import subprocess
import tempfile
import time

from lablib import netns
from lablib.qmp import Qmp
from lablib.topology import GUEST_ADDRESS, GUEST_MAC
from lablib.util import Process, run, wait_until


class PlainPair:
    def __init__(self, prefix, settings):
        self.settings = settings
        self.room = f"{prefix}-plain"
        self.dir = tempfile.mkdtemp(prefix="cldlab-plain-")
        self.processes = []

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.destroy()
        netns.delete(self.room)
        shutil.rmtree(self.dir, ignore_errors=True)

    def _start(self):
        netns.delete(self.room)
        netns.add(self.room)
        run(*netns.enter_argv(self.room), "sysctl", "-q", "net.ipv6.conf.all.disable_ipv6=1",
            "net.ipv6.conf.default.disable_ipv6=1")
        for tap in ("tap-p", "tap-s"):
            run("ip", "-n", self.room, "tuntap", "add", tap, "mode", "tap", "vnet_hdr")
            run("ip", "-n", self.room, "link", "set", tap, "up")
        run("ip", "-n", self.room, "addr", "add", "10.77.0.1/24", "dev", "tap-p")
        self.primary = self._qemu("p")
        self.secondary = self._qemu("s", "-incoming", "defer")
        wait_until(self._guest_answers, 60, "the plain guest answers")
        self._enter_colo()

    def _qemu(self, name, *options):
        settings = self.settings
        with open(f"{settings.guest}/cmdline", encoding="ascii") as file:
            append = file.read().strip()
        with open(f"{self.dir}/{name}.log", "wb") as log:
            child = subprocess.Popen(
                [*netns.enter_argv(self.room), settings.qemu, "-M", "pc", "-accel", "tcg",
                 "-m", str(settings.memory_mib), "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none",
                 "-serial", f"file:{self.dir}/{name}.console",
                 "-kernel", f"{settings.guest}/vmlinuz", "-initrd", f"{settings.guest}/initrd", "-append", append,
                 "-netdev", f"tap,id=nic0,ifname=tap-{name},script=no,downscript=no,vhost=off",
                 "-device", f"virtio-net-pci,netdev=nic0,mac={GUEST_MAC}",
                 "-qmp", f"unix:{self.dir}/{name}.qmp,server=on,wait=off", *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        child.returncode = 0
        self.processes.append(Process(child.pid))
        return Qmp(f"{self.dir}/{name}.qmp")

    def socket(self, timeout):
        with netns.inside(self.room):
            sock = socket.socket()
        sock.settimeout(timeout)
        return sock

    def guest_command(self, text, timeout=10):
        with self.socket(timeout) as sock:
            sock.connect((GUEST_ADDRESS, 9))
            sock.sendall(text.encode() + b"\n")
            return sock.makefile().readline().strip()

    def _guest_answers(self):
        try:
            return self.guest_command("status", 1).startswith("ok")
        except OSError:
            return False

    def _enter_colo(self):
        for qmp in (self.primary, self.secondary):
            qmp.call("migrate-set-capabilities", capabilities=[
                {"capability": name, "state": True} for name in ("return-path", "x-colo")])
        address = f"unix:{self.dir}/migration"
        self.secondary.call("migrate-incoming", uri=address)
        wait_until(lambda: os.path.exists(f"{self.dir}/migration"), 10, "the secondary listens")
        self.primary.call("migrate-set-parameters", **{
            "max-bandwidth": 1 << 40, "downtime-limit": 300, "x-checkpoint-delay": 600_000})
        self.primary.call("migrate", uri=address)
        wait_until(lambda: self.primary.call("query-migrate").get("status") == "colo", 30, "COLO")

    def checkpoints(self, count, interval_ms):
        """That many checkpoints; the primary's pauses in microseconds.

        As in colod the interval is from the end of one to the start of the next: the guest runs as long.
        """
        pauses = []
        while len(pauses) < count:
            time.sleep(interval_ms / 1000)
            self.primary.events.clear()
            # Any change of it starts a checkpoint; it is also the longest time until the next.
            self.primary.call("migrate-set-parameters", **{"x-checkpoint-delay": 600_000})
            stopped = self.primary.wait_event("STOP")
            pauses.append(self.primary.wait_event("RESUME") - stopped)
        return pauses
