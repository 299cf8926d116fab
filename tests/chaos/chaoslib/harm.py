# SPDX-License-Identifier: LGPL-2.1-or-later
"""harm.py - what is done to a host's files, to the arbiter and to disks that fail; and that all of it can be repaired."""
import contextlib
import hashlib
import os
import re
import shutil

from lablib.settings import VM
from lablib.util import LabError, run

OPS = {"read": ("pread",), "write": ("pwrite", "zero", "trim")}
ODD_BYTE = 5  # from the end of the image: nobody else writes there
DISK = "disk0"
COPIED = ("state", "metadata", "map", "qemu")
PAST = ("old-state", "claim")  # what colod itself writes anew: there is nothing to repair


class Harm:
    """damage() and repair(); what colod reads at its start is to be damaged while it is down."""

    def __init__(self, lab):
        self.lab = lab
        self.done = set()  # (host, what)
        self.failing = set()

    # Files

    def _path(self, name, what):
        host = self.lab.host(name)
        state, pki = f"{host.dir}/state/{VM}", f"{host.dir}/pki/{name}.pem"
        return {"state": host.state_file, "old-state": host.state_file, "claim": host.state_file,
                "metadata": f"{state}/{DISK}.meta", "map": f"{state}/{DISK}.map", "image": host.image(), "size": host.image(),
                "commit": f"{host.dir}/overlays/{DISK}.overlays/commit.new", "certificate": pki, "address": pki,
                "qemu": host.config}[what]

    def damage(self, name, what):
        path = self._path(name, what)
        if what in COPIED:
            shutil.copy(path, f"{path}.sound")
        getattr(self, f"_{what.replace('-', '_')}")(name, path)
        if what not in PAST:
            self.done.add((name, what))

    def repair(self, name, what):
        path = self._path(name, what)
        if (name, what) not in self.done:
            raise LabError(f"the {what} of {name} is as it was")
        self.done.discard((name, what))
        if what == "commit":
            os.rmdir(path)
        elif what == "image":
            self._image(name, path)
        elif what == "size":
            os.truncate(path, self.lab.settings.disk_mib << 20)
        elif what in ("certificate", "address"):
            shutil.rmtree(os.path.dirname(path))
            os.rename(f"{os.path.dirname(path)}.sound", os.path.dirname(path))
        else:
            os.replace(f"{path}.sound", path)

    @staticmethod
    def _flip(path, at):
        with open(path, "r+b") as file:
            file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))

    def _state(self, name, path):
        self._flip(path, 40)

    def _metadata(self, name, path):
        self._flip(path, 40)

    def _map(self, name, path):
        self._flip(path, 20)

    def _image(self, name, path):
        self._flip(path, -ODD_BYTE)

    def _size(self, name, path):
        os.truncate(path, (self.lab.settings.disk_mib << 20) + (1 << 20))

    def _commit(self, name, path):
        os.mkdir(path)  # where the record is to be written

    def _qemu(self, name, path):
        with open(path, encoding="ascii") as file:
            text = file.read()
        with open(path, "w", encoding="ascii") as file:
            file.write(re.sub(r"^qemu=.*$", "qemu=/bin/true", text, flags=re.MULTILINE))

    def _other_certificate(self, name, path, authority, address):
        made = f"{self.lab.dir}/harm-{name}"
        shutil.rmtree(made, ignore_errors=True)
        run(*self.lab.colo_pki(), "host", authority, f"{name}{address}", made)
        os.rename(os.path.dirname(path), f"{os.path.dirname(path)}.sound")
        os.rename(made, os.path.dirname(path))

    def _certificate(self, name, path):
        """Of another authority."""
        authority = f"{self.lab.dir}/other-ca"
        if not os.path.exists(authority):
            run(*self.lab.colo_pki(), "init", authority)
        self._other_certificate(name, path, authority, "")

    def _address(self, name, path):
        """Of the pair's authority and for this name, but disks look for the address."""
        self._other_certificate(name, path, f"{self.lab.dir}/ca", "")

    # State files

    def remember(self, name):
        host = self.lab.host(name)
        shutil.copy(host.state_file, f"{host.dir}/remembered-state")

    def _old_state(self, name, path):
        shutil.copy(f"{self.lab.host(name).dir}/remembered-state", path)

    def _claim(self, name, path):
        """As if its colod had died when it had begun to claim and won, but not noted yet that it won."""
        with open(path, encoding="ascii") as file:
            text = file.read().partition("sha256=")[0]
        newest = max(int(claim.rpartition(".")[2]) for claim in os.listdir(self._arbiter) if re.fullmatch(rf"{VM}\.\d{{20}}", claim))
        text = re.sub(r"^claiming=.*$", f"claiming={newest + 1}", text, flags=re.MULTILINE)
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{text}sha256={hashlib.sha256(text.encode()).hexdigest()}\n")
        with open(f"{self._arbiter}/{VM}.{newest + 1:020}", "w", encoding="ascii") as file:
            file.write(f"{name}\n")

    # The arbiter's storage

    @property
    def _arbiter(self):
        return f"{self.lab.dir}/arbiter"

    def arbiter(self, where):
        if where == "away":
            os.rename(self._arbiter, f"{self._arbiter}-away")
        else:
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self._arbiter}-away", self._arbiter)

    # Disks that fail when they are told to

    def _exports(self, name):
        found = [export for export in self.lab.host(name).exports() if hasattr(export, "trigger")]
        if not found:
            raise LabError(f"no disk of {name} fails when it is told to: lab exports={name}0:failing")
        return found

    def disk_fault(self, name, what):
        for export in self._exports(name):
            if what == "hang":
                export.hang()
            else:
                export.fail(*OPS[what])
        self.failing.add(name)

    def disk_mend(self, name):
        self.failing.discard(name)
        for export in self._exports(name):
            if not export.is_alive():
                export.start()
            export.mend()

    def repair_all(self):
        for name, what in list(self.done):
            self.repair(name, what)
        for name in list(self.failing):
            self.disk_mend(name)
        self.arbiter("back")
