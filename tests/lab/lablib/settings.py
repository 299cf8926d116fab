# SPDX-License-Identifier: LGPL-2.1-or-later
"""settings.py - what a lab was brought up with, and the configuration files made from it."""
import dataclasses
import json
import os
import uuid

from . import topology
from .util import LabError

VM = "lab"
PEER_PORT = 7700
MODES = ("buffered", "lockstep")
QMP_SOCKET = "test-qmp.sock"  # relative, as both hosts' arguments must be the same: colod and QEMU run in the host's directory

CONFIG = """\
[vm]
uuid={uuid}
qemu={qemu}
machine=pc
accel=tcg
memory-mib={memory_mib}
cpus={cpus}
kernel={guest}/vmlinuz
initrd={guest}/{initrd}
append={append}
qmp-log=true
{extra}[nic0]
mac={mac}
bridge=br-lan
model=virtio-net-pci
port={port}
queues={queues}
[network]
mode={mode}
{compare}{hold}{interval}{disks}[host]
name={host}
initial-role={role}
[peer]
name={peer}
listen={address}:{peer_port}
address={peer_address}:{peer_port}
tls-ca={pki}/ca.pem
tls-cert={pki}/{host}.pem
tls-key={pki}/{host}-key.pem
[arbiter]
type={arbiter}
{arbiter_path}[test]
hooks=true
"""


@dataclasses.dataclass
class Settings:
    mode: str = "lockstep"
    memory_mib: int = 128
    interval_ms: int = 0  # the mode's default
    compare_timeout_ms: int = 0  # the default
    hold_mib: int = 0  # bound of held output; the default
    arbiter: str = "file"
    port: str = "tap"
    disk_mib: int = 0  # no disk
    disks: int = 1  # so many of them
    overlay_mib: int = 0  # the default
    images_fs_mib: dict = dataclasses.field(default_factory=dict)  # by host: a small file system for the images
    overlays_fs_mib: dict = dataclasses.field(default_factory=dict)  # and for the overlays
    exports: dict = dataclasses.field(default_factory=dict)  # by host and disk ("b1"): "qcow2" or "failing" (exports.py)
    sync_mib: int = 0  # MiB/s; 0: no limit
    cpus: int = 1
    queues: int = 1
    qmp: bool = False  # a second QMP socket for each QEMU, in its host's directory
    clock: bool = False  # hosts whose clocks can jump
    kv: bool = False  # a key-value store in the guest: 16 MiB more of its memory
    build: str = ""
    uuid: str = ""
    qemu: str = ""
    guest: str = ""

    def check(self):
        for name, value, known in (("mode", self.mode, MODES), ("arbiter", self.arbiter, ("file", "manual")),
                                   ("port", self.port, ("tap", "stream"))):
            if value not in known:
                raise LabError(f"unknown {name} '{value}': {', '.join(known)}")
        for program in ("colod", "colo"):
            if not os.access(f"{self.build}/colod/{program}", os.X_OK):
                raise LabError(f"{self.build}/colod/{program} is missing: build it "
                               "(cmake --preset dev && cmake --build --preset dev) or say --build DIR")
        if not self.uuid:
            self.uuid = str(uuid.uuid4())

    def disk_numbers(self):
        return range(self.disks if self.disk_mib else 0)

    def _disks_text(self, directory, images):
        text = ""
        for number in self.disk_numbers():
            text += f"[disk{number}]\nimage={images[number]}\noverlay-dir={directory}/overlays\n"
            if self.overlay_mib:
                text += f"overlay-limit-mib={self.overlay_mib}\n"
            if self.sync_mib:
                text += f"sync-rate-mib={self.sync_mib}\n"
        return text

    def config_text(self, host, directory, arbiter_dir, images):
        """images: by number, what the configuration has of each disk."""
        peer = "b" if host == "a" else "a"
        with open(f"{self.guest}/cmdline", encoding="ascii") as file:
            append = file.read().strip()
        return CONFIG.format(
            uuid=self.uuid, qemu=self.qemu, memory_mib=self.memory_mib, guest=self.guest, append=append,
            initrd="initrd.kv" if self.kv else "initrd",
            mac=topology.GUEST_MAC, port=self.port, cpus=self.cpus, queues=self.queues, mode=self.mode, host=host,
            extra=f"extra-args=-qmp;unix:{QMP_SOCKET},server=on,wait=off\n" if self.qmp else "",
            compare=f"compare-timeout-ms={self.compare_timeout_ms}\n" if self.compare_timeout_ms else "",
            hold=f"hold-limit-mib={self.hold_mib}\n" if self.hold_mib else "",
            interval=f"[checkpoint]\ninterval-ms={self.interval_ms}\n" if self.interval_ms else "",
            role="primary" if host == "a" else "secondary", peer=peer,
            address=topology.PEER_ADDRESS[host], peer_address=topology.PEER_ADDRESS[peer],
            peer_port=PEER_PORT, pki=f"{directory}/pki", disks=self._disks_text(directory, images), arbiter=self.arbiter,
            arbiter_path=f"path={arbiter_dir}\n" if self.arbiter == "file" else "")

    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(self), file, indent=1)

    @classmethod
    def load(cls, path):
        try:
            with open(path, encoding="utf-8") as file:
                return cls(**json.load(file))
        except FileNotFoundError as error:
            raise LabError("the lab is not up (lab up)") from error
