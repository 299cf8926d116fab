# SPDX-License-Identifier: LGPL-2.1-or-later
"""qemu_chain.py - a guest in lock-step by QEMU's own parts: x-colo and its network filters, without colod.

    client - switch - br-lan - tap0 - PVM                           SVM - tap0 (in no bridge until it takes over)
                                      | filter-mirror -------- mirror --> filter-redirector f1
                                      | filter-redirector <--- out        filter-rewriter
                                      | filter-redirector --.             filter-redirector f2 --.
                                                         primary                             secondary
                                                             `--> colo-compare: QEMU's object <--'
                                                                  or our program

With QEMU's object COLO makes checkpoints by itself. With our program there is no object that COLO knows of: it asks on
its notify socket, and Driver answers as a management program would.

Theory of operation of Driver: it relays the migration stream, which shows where a checkpoint stands. DO_CHECKPOINT
becomes a trigger over QMP. VMSTATE_SEND, the first bytes of the primary after the secondary's REPLY, says that both
VMs are stopped: it is held until colo-compare has committed, so no frame of the epoch to come can be taken for one of
the old. (That the secondary has not loaded yet then is QEMU's order of things, too; colod's gate is stricter.)
COLO_CHECKPOINT has no answer, but messages are served in order, so the answer to another one after it is the proof.
"""
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

from . import netns, topology
from .lab import GuestConnection
from .qmp import Qmp
from .util import LabError, Process, run, wait_until

MIB = 1 << 20
REQUEST, REPLY, VMSTATE_SEND, LOADED = 1, 2, 3, 6
RP_SHUT = 1
TRIGGER_AGAIN_S = 0.3  # QEMU loses a trigger that comes before RESUME
HOST_PORTS = {"mirror": 9003, "secondary": 9004}  # what runs between the hosts, where it is TCP


def client_chardev_argv(name, address):
    return ["-chardev", f"socket,id={name},{address}"]


class StreamWatch:
    """Finds REPLY and LOADED in what the secondary sends: return-path messages up to SHUT, then be32 each."""

    def __init__(self):
        self.raw = False
        self.rest = b""

    def feed(self, data):
        """The COLO messages that are complete with this."""
        self.rest += data
        found = []
        while len(self.rest) >= 4:
            if not self.raw:
                kind, length = struct.unpack_from(">HH", self.rest)
                if kind:
                    if len(self.rest) < 4 + length:
                        break
                    self.rest = self.rest[4 + length:]
                    self.raw = kind == RP_SHUT
                    continue
                self.raw = True  # QEMU without return-path: COLO messages from the start
            found.append(struct.unpack_from(">I", self.rest)[0])
            self.rest = self.rest[4:]
        return found


class Driver:
    """Makes the checkpoints our colo-compare asks for."""

    def __init__(self, chain):
        self.chain = chain
        self.failure = None
        self.checkpoints = 0
        self.asked = 0
        self.commits = 0  # answers after COLO_CHECKPOINT
        self.wanted = False
        self.sent = 0  # VMSTATE_SEND seen
        self.loaded = 0
        self.hold_next = False
        self.closing = False
        self.changed = threading.Condition()
        self.notify = socket.socket(socket.AF_UNIX)
        self.notify.connect(chain.path("notify"))
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(chain.path("migration"))
        self.listener.listen(1)
        self.socks = []

    def start(self):
        for work in (self._relay, self._listen_notify, self._trigger):
            threading.Thread(target=self._guarded, args=(work,), daemon=True, name=work.__name__).start()

    def close(self):
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        for sock in (self.notify, self.listener, *self.socks):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def check(self):
        if self.failure:
            raise LabError(self.failure)

    def _guarded(self, work):
        try:
            work()
        except (OSError, LabError, ValueError) as error:
            if not self.closing and not self.failure:
                self.failure = f"checkpoint driver, {work.__name__}: {type(error).__name__}: {error}"

    def _wait(self, condition, seconds, what):
        if not self.changed.wait_for(lambda: self.closing or condition(), seconds):
            raise LabError(f"not within {seconds} s: {what}")

    # The migration stream

    def _relay(self):
        primary, _ = self.listener.accept()
        secondary = socket.socket(socket.AF_UNIX)
        secondary.connect(self.chain.path("incoming"))
        self.socks = [primary, secondary]
        backward = threading.Thread(target=self._guarded, args=(lambda: self._backward(secondary, primary),), daemon=True)
        backward.start()
        try:
            self._forward(primary, secondary)
        finally:
            for sock in self.socks:  # whoever is left is told
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _forward(self, primary, secondary):
        while True:
            data = primary.recv(MIB)
            if not data:
                return
            if self.hold_next:
                while len(data) < 4:
                    data += primary.recv(4 - len(data))
                message = struct.unpack_from(">I", data)[0]
                if message != VMSTATE_SEND:
                    raise LabError(f"message {message} after REPLY")
                self._commit()
            secondary.sendall(data)

    def _backward(self, secondary, primary):
        watch = StreamWatch()
        while True:
            data = secondary.recv(MIB)
            if not data:
                with contextlib.suppress(OSError):
                    primary.shutdown(socket.SHUT_RDWR)
                return
            for message in watch.feed(data):
                if message == REPLY:
                    self.hold_next = True  # before the primary sees it
                elif message == LOADED:
                    with self.changed:
                        self.loaded += 1
                        self.changed.notify_all()
            primary.sendall(data)

    def _commit(self):
        self.hold_next = False
        with self.changed:
            self.sent += 1
            goal = self.commits + 1
            self._say("COLO_CHECKPOINT")
            self._say("COLO_USERSPACE_PROXY_INIT")
            self._wait(lambda: self.commits >= goal, 10, "colo-compare commits")
            self.checkpoints += 1
            self.changed.notify_all()

    # The notify socket

    def _say(self, text):
        self.notify.sendall(struct.pack(">I", len(text)) + text.encode())

    def _listen_notify(self):
        stream = self.notify.makefile("rb")
        while True:
            head = stream.read(4)
            if len(head) < 4:
                raise LabError("colo-compare closed the notify socket")
            text = stream.read(struct.unpack(">I", head)[0]).decode()
            with self.changed:
                if text == "DO_CHECKPOINT":
                    self.asked += 1
                    self.wanted = True
                elif text == "COLO_COMPARE_GET_XEN_INIT":
                    self.commits += 1
                    self.wanted = False  # what was asked for before this
                else:
                    raise LabError(f"colo-compare says '{text}'")
                self.changed.notify_all()

    def _trigger(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closing or self.wanted)
                if self.closing:
                    return
                sent, loaded = self.sent, self.loaded
            self.chain.trigger()
            with self.changed:
                if not self.changed.wait_for(lambda: self.closing or self.sent > sent, TRIGGER_AGAIN_S):
                    continue
                self._wait(lambda: self.loaded > loaded, 20, "VMSTATE_LOADED")


class QemuChain:
    """compare: path of our colo-compare, None for QEMU's object. settings: qemu, guest, memory_mib. over_link: frames between the
    hosts cross the peer link by TCP, as they must on two machines and as colod's do; else they are in UNIX sockets.

    Has what lablib.clients want of a lab: client_socket(). The guest boots before it is protected, see lab.py.
    """

    def __init__(self, prefix, settings, compare=None, timeout_ms=200, interval_ms=600_000, options=(), over_link=False):
        self.settings = settings
        self.compare_program = compare
        self.timeout_ms = timeout_ms
        self.interval_ms = interval_ms
        self.compare_options = list(options)
        self.over_link = over_link
        self.topology = topology.Topology(prefix)
        self.dir = tempfile.mkdtemp(prefix="cldlab-chain-")
        self.processes = {}
        self.qmp = {}
        self.driver = None

    def path(self, name):
        return f"{self.dir}/{name}"

    def __enter__(self):
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_):
        self.down()

    # Up and down

    def up(self):
        self._remove_rooms()
        self.topology.create()
        for host in topology.HOSTS:
            room = self.topology.name(host)
            run("ip", "-n", room, "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
            run("ip", "-n", room, "link", "set", "tap0", "up")
        self._plug("a")
        self._qemu("a")
        wait_until(self.guest_answers, 90, lambda: f"the guest answers; {self.describe()}")
        self.protect()

    def down(self):
        if self.driver:
            self.driver.close()
        for process in self.processes.values():
            process.destroy()
        self._remove_rooms()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _remove_rooms(self):
        for room in topology.ROOMS:
            for process in self.topology.processes(room):
                process.destroy()
        self.topology.delete()

    def _plug(self, host):
        run("ip", "-n", self.topology.name(host), "link", "set", "tap0", "master", "br-lan")

    def _spawn(self, name, argv):
        with open(self.path(f"{name}.log"), "wb") as log:
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        child.returncode = 0  # it is waited for by pid
        self.processes[name] = Process(child.pid)

    def _qemu(self, host, *options):
        settings = self.settings
        with open(f"{settings.guest}/cmdline", encoding="ascii") as file:
            append = file.read().strip()
        self._spawn(host, [
            *netns.enter_argv(self.topology.name(host)), settings.qemu, "-M", "pc", "-accel", "tcg",
            "-m", str(settings.memory_mib), "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none",
            "-serial", f"file:{self.path(host)}.console",
            "-kernel", f"{settings.guest}/vmlinuz", "-initrd", f"{settings.guest}/initrd", "-append", append,
            "-netdev", "tap,id=nic0,ifname=tap0,script=no,downscript=no,vhost=off",
            "-device", f"virtio-net-pci,netdev=nic0,mac={topology.GUEST_MAC}",
            "-qmp", f"unix:{self.path(host)}.qmp,server=on,wait=off", *self.disk_options(host), *options])
        self.qmp[host] = Qmp(f"{self.path(host)}.qmp")

    def disk_options(self, _host):
        return []

    def join_disks(self):
        """The primary stands, the secondary's QEMU waits for it."""

    def protect(self):
        primary = self.qmp["a"]
        primary.call("stop")  # see docs/qemu-compat.md, lost dirty pages under TCG
        if self.compare_program:
            self._start_our_compare()
        self._primary_filters()
        self._qemu("b", "-incoming", "defer", *self._secondary_filters())
        for qmp in self.qmp.values():
            qmp.call("migrate-set-capabilities", capabilities=[
                {"capability": name, "state": True} for name in ("return-path", "x-colo")])
        self.join_disks()
        incoming = self.path("incoming" if self.compare_program else "migration")
        self.qmp["b"].call("migrate-incoming", uri=f"unix:{incoming}")
        wait_until(lambda: os.path.exists(incoming), 10, "the secondary listens")
        primary.call("migrate-set-parameters", **{
            "max-bandwidth": 1 << 40, "downtime-limit": 300, "x-checkpoint-delay": self.interval_ms})
        if self.compare_program:
            self.driver = Driver(self)
            self.driver.start()
        primary.events.clear()
        primary.call("migrate", uri=f"unix:{self.path('migration')}")
        primary.wait_event("RESUME", 60)
        wait_until(lambda: primary.call("query-migrate").get("status") == "colo", 30, "COLO")

    def _start_our_compare(self):
        self._spawn("compare", [
            self.compare_program, "--vnet-hdr", "--timeout-ms", str(self.timeout_ms),
            "--stats-json", self.path("stats"),
            *(text for name in ("primary", "secondary", "out", "notify")
              for text in (f"--{name}", f"unix:{self.path(name)}")), *self.compare_options])
        wait_until(lambda: all(os.path.exists(self.path(name)) for name in ("primary", "secondary", "out", "notify")), 10,
                   lambda: f"colo-compare listens; it says: {self.log('compare')}")

    def _chardev(self, name, path, server):
        address = {"type": "unix", "data": {"path": self.path(path)}}
        if self.over_link and path in HOST_PORTS:
            address = {"type": "inet", "data": {"host": topology.PEER_ADDRESS["a"], "port": str(HOST_PORTS[path])}}
        self.qmp["a"].call("chardev-add", id=name, backend={"type": "socket", "data": {
            "addr": address, "server": server, **({"wait": False} if server else {}),
            **({"nodelay": True} if address["type"] == "inet" else {})}})

    def _object(self, kind, name, **properties):
        self.qmp["a"].call("object-add", **{"qom-type": kind, "id": name, **properties})

    def _primary_filters(self):
        own = not self.compare_program
        self._chardev("mirror0", "mirror", True)
        if own:
            self._chardev("compare1", "secondary", True)
            self._chardev("compare0", "primary", True)
            self._chardev("compare0-0", "primary", False)
            self._chardev("compare_out", "out", True)
            self._chardev("compare_out0", "out", False)
        else:
            self._chardev("compare0", "primary", False)
            self._chardev("compare_out", "out", False)
        common = {"netdev": "nic0", "vnet_hdr_support": True}
        self._object("filter-mirror", "m0", queue="tx", outdev="mirror0", **common)
        self._object("filter-redirector", "redire0", queue="rx", indev="compare_out", **common)
        self._object("filter-redirector", "redire1", queue="rx", outdev="compare0", **common)
        if own:
            self._object("iothread", "iothread1")
            self._object("colo-compare", "comp0", primary_in="compare0-0", secondary_in="compare1",
                         outdev="compare_out0", iothread="iothread1", vnet_hdr_support=True)

    def _secondary_filters(self):
        common = "netdev=nic0,vnet_hdr_support=on"
        def address(path):
            if self.over_link and path in HOST_PORTS:
                return f"host={topology.PEER_ADDRESS['a']},port={HOST_PORTS[path]},nodelay=on"
            return f"path={self.path(path)}"
        return [*client_chardev_argv("red0", address("mirror")), *client_chardev_argv("red1", address("secondary")),
                "-object", f"filter-redirector,id=f1,queue=tx,indev=red0,{common}",
                "-object", f"filter-redirector,id=f2,queue=rx,outdev=red1,{common}",
                "-object", f"filter-rewriter,id=rew0,queue=all,{common}"]

    # What can be done to it

    def trigger(self):
        """Any change of it starts a checkpoint; it is also the longest time until the next."""
        self.qmp["a"].call("migrate-set-parameters", **{"x-checkpoint-delay": self.interval_ms})

    def kill_primary(self):
        if self.driver:
            self.driver.closing = True  # nobody is there to trigger any more
        self.processes["a"].kill(signal.SIGKILL)

    def fail_over(self):
        """What a management program does when the primary is dead: the secondary goes on, on the LAN."""
        secondary = self.qmp["b"]
        for name in ("f2", "f1"):
            secondary.call("object-del", id=name)
        for name in ("red1", "red0"):
            secondary.call("chardev-remove", id=name)
        self._plug("b")
        secondary.call("x-colo-lost-heartbeat")

    def stats(self):
        """What our colo-compare counted so far."""
        path = self.path("stats")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.processes["compare"].kill(signal.SIGUSR1)

        def read():
            try:
                with open(path, encoding="utf-8") as file:
                    return json.load(file)
            except (FileNotFoundError, ValueError):  # not yet, or not all of it yet
                return None
        return wait_until(read, 10, lambda: f"colo-compare's counters; it says: {self.log('compare')}")

    # Looking

    def check(self):
        """Raises what went wrong in the background."""
        if self.driver:
            self.driver.check()
        for name, process in self.processes.items():
            if not process.is_alive():
                raise LabError(f"{name} is dead; its log: {self.log(name)}")

    def log(self, name, kind="log"):
        with contextlib.suppress(OSError), open(self.path(f"{name}.{kind}"), encoding="utf-8", errors="replace") as file:
            return file.read()[-2000:]
        return ""

    def describe(self):
        """All there is to say, for a test that failed."""
        texts = []
        for host, qmp in self.qmp.items():
            with contextlib.suppress(LabError):
                texts.append(f"{host}: {qmp.call('query-status')}, COLO {qmp.call('query-colo-status')}")
            texts.append(f"{host}: console {self.log(host, 'console')[-300:]!r}, log {self.log(host)!r}")
        if self.driver:
            driver = self.driver
            texts.append(f"driver: {driver.failure or 'no failure'}; asked {driver.asked}, wanted {driver.wanted}, "
                         f"VMSTATE_SEND {driver.sent}, committed {driver.checkpoints}, loaded {driver.loaded}")
            with contextlib.suppress(LabError):
                texts.append(f"colo-compare: {self.stats()}")
            texts.append(f"colo-compare: {self.log('compare')!r}")
        return "\n".join(texts)

    # Client

    def client_socket(self, kind=socket.SOCK_STREAM, family=socket.AF_INET):
        with netns.inside(self.topology.name("c")):
            return socket.socket(family, kind)

    def guest_command(self, text, timeout=10, kind=socket.SOCK_STREAM):
        """One line to the guest's port 9 and its answer."""
        with self.client_socket(kind) as sock:
            sock.settimeout(timeout)
            sock.connect((topology.GUEST_ADDRESS, 9))
            sock.sendall(text.encode() + b"\n")
            return sock.recv(1024).decode().strip()

    def guest_answers(self):
        try:
            return self.guest_command("status", 1).startswith("ok")
        except OSError:
            return False

    def http_get(self, path, timeout=60):
        connection = GuestConnection(self, timeout)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            return connection.getresponse().read()
        finally:
            connection.close()
