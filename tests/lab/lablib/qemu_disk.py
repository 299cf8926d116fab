# SPDX-License-Identifier: LGPL-2.1-or-later
"""qemu_disk.py - the same guests without colod, with a disk: not replicated, and replicated by QEMU's own parts.

QEMU's set as docs/block-replication.txt and docs/COLO-FT.txt have it: `quorum` over the image and `replication` (primary)
over NBD; on the other host `quorum` over `replication` (secondary) over qcow2 active over qcow2 hidden over the image, which
its NBD server exports. The overlays are in memory, as advised there. The images are opened as ours are (cache=none, aio=native).
"""
import json
import os
import shutil
import tempfile

from . import topology
from .plain import PlainGuests
from .qemu_chain import QemuChain
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
        return [*file_nodes(self.images["a"], "local0"), *self._quorum("local0"), *device("disk0")]

    def _secondary_disk(self):
        nodes = file_nodes(self.images["b"], "parent0")
        below = "parent0"
        for name in ("hidden", "active"):
            path = f"{self.memory}/{name}.qcow2"
            run(f"{os.path.dirname(self.settings.qemu)}/qemu-img", "create", "-q", "-f", "qcow2", path,
                str(os.path.getsize(self.images["a"])))
            nodes += blockdev(driver="qcow2", node_name=f"{name}0", file={"driver": "file", "filename": path}, backing=below)
            below = f"{name}0"
        return [*nodes, *blockdev(driver="replication", node_name="childs0", mode="secondary", top_id="disk0", file=below),
                *self._quorum("childs0"), *device("disk0")]

    @staticmethod
    def _quorum(child):
        return blockdev(driver="quorum", node_name="disk0", read_pattern="fifo", vote_threshold=1, children=[child])

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
