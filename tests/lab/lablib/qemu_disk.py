# SPDX-License-Identifier: LGPL-2.1-or-later
"""qemu_disk.py - the same guests without colod, with a disk: not replicated, and replicated by QEMU's own parts.

QEMU's set as docs/block-replication.txt and docs/COLO-FT.txt have it: `quorum` over the image and `replication` (primary)
over NBD; on the other host `quorum` over `replication` (secondary) over qcow2 active over qcow2 hidden over the image, which
its NBD server exports. The overlays are in memory, as advised there. The images are opened as ours are (cache=none, aio=native).
"""
import json
import os
import shutil
import subprocess
import tempfile
import time

from . import topology
from .plain import PlainGuests
from .qemu_chain import QemuChain
from .qmp import Qmp
from .util import run

NBD_PORT = 7790
MEMORY = "/dev/shm"


def blockdev(**node):
    return ["-blockdev", json.dumps({key.replace("_", "-"): value for key, value in node.items()})]


def file_nodes(image, top):
    """The image as colod opens it."""
    return [*blockdev(driver="file", node_name=f"{top}-file", filename=image, aio="native", discard="unmap",
                      cache={"direct": True}),
            *blockdev(driver="raw", node_name=top, file=f"{top}-file", discard="unmap", cache={"direct": True})]


def device(node):
    return ["-device", f"virtio-blk-pci,id=dev-disk0,drive={node},serial=disk0,werror=report,rerror=report"]


def quorum(child):
    return blockdev(driver="quorum", node_name="disk0", read_pattern="fifo", vote_threshold=1, children=[child])


def secondary_nodes(settings, image, memory):
    nodes = file_nodes(image, "parent0")
    below = "parent0"
    for name in ("hidden", "active"):
        path = f"{memory}/{name}.qcow2"
        run(f"{os.path.dirname(settings.qemu)}/qemu-img", "create", "-q", "-f", "qcow2", path, str(os.path.getsize(image)))
        nodes += blockdev(driver="qcow2", node_name=f"{name}0", file={"driver": "file", "filename": path}, backing=below)
        below = f"{name}0"
    return [*nodes, *blockdev(driver="replication", node_name="childs0", mode="secondary", top_id="disk0", file=below),
            *quorum("childs0")]


class PlainDisks(PlainGuests):
    """Both hosts' images are made by the caller: images = {"a": PATH, "b": PATH}."""

    def __init__(self, prefix, settings, images):
        super().__init__(prefix, settings)
        self.images = images

    def disk_options(self, host):
        return [*file_nodes(self.images[host], "disk0"), *device("disk0")]


class ReplicatedDisks(QemuChain):
    """The whole of COLO, with the network's filters. The secondary's image becomes a copy of the primary's."""

    def __init__(self, prefix, settings, images, **options):
        super().__init__(prefix, settings, **options)
        self.images = images
        self.memory = tempfile.mkdtemp(prefix="cldlab-overlays-", dir=MEMORY)

    def down(self):
        super().down()
        shutil.rmtree(self.memory, ignore_errors=True)

    def disk_options(self, host):
        return self._primary_disk() if host == "a" else self._secondary_disk()

    def _primary_disk(self):
        return [*file_nodes(self.images["a"], "local0"), *quorum("local0"), *device("disk0")]

    def _secondary_disk(self):
        return secondary_nodes(self.settings, self.images["b"], self.memory) + device("disk0")

    def join_disks(self):
        run("cp", "--sparse=always", self.images["a"], self.images["b"], timeout=120)
        address = {"host": topology.PEER_ADDRESS["b"], "port": str(NBD_PORT)}
        primary, secondary = self.qmp["a"], self.qmp["b"]
        secondary.call("nbd-server-start", addr={"type": "inet", "data": address})
        secondary.call("block-export-add", **{"type": "nbd", "id": "parent0", "node-name": "parent0", "name": "parent0",
                                              "writable": True})
        primary.call("blockdev-add", **{
            "driver": "replication", "mode": "primary", "node-name": "replication0", "discard": "unmap",
            "file": {"driver": "nbd", "server": {"type": "inet", **address}, "export": "parent0", "discard": "unmap"}})
        primary.call("x-blockdev-change", parent="disk0", node="replication0")


class SecondaryDisk:
    """QEMU's disk of a secondary without a guest, as Xen's COLO uses it. The image is made: sparse."""

    def __init__(self, settings, mib):
        self.mib = mib
        self.dir = tempfile.mkdtemp(prefix="cldlab-secondary-", dir=MEMORY)
        image = f"{self.dir}/image"
        with open(image, "wb") as file:
            file.truncate(mib << 20)
        nodes = secondary_nodes(settings, image, self.dir)
        # Memory has no direct I/O.
        nodes = [word.replace(', "aio": "native"', "").replace(', "cache": {"direct": true}', "") for word in nodes]
        self.process = subprocess.Popen([settings.qemu, "-M", "none", "-nodefaults", "-display", "none", "-qmp",
                                         f"unix:{self.dir}/qmp,server=on,wait=off", *nodes])
        self.qmp = Qmp(f"{self.dir}/qmp")
        self.qmp.call("nbd-server-start", addr={"type": "unix", "data": {"path": f"{self.dir}/nbd"}})
        for node in ("parent0", "disk0"):  # the primary's writes; the guest's
            self.qmp.call("block-export-add", **{"type": "nbd", "id": node, "node-name": node, "name": node, "writable": True})
        self.qmp.call("xen-set-replication", enable=True, primary=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def write(self, mib):
        """Into both overlays: the guest's first, for what the primary overwrites is saved only once."""
        script = (f"b = bytes(range(256)) * 4096\nfor i in range({mib}):\n h.pwrite(b, i << 20)\n")
        for node in ("disk0", "parent0"):
            run("/usr/bin/python3", "-m", "nbd", "-u", f"nbd+unix:///{node}?socket={self.dir}/nbd", "-c", script, timeout=120)

    def checkpoint_us(self):
        start = time.monotonic_ns()
        self.qmp.call("xen-colo-do-checkpoint")
        return (time.monotonic_ns() - start) / 1000
