# SPDX-License-Identifier: LGPL-2.1-or-later
"""host.py - one host of the lab: its directories, its colod, its QEMU."""
import json
import os
import re
import signal
import subprocess
import uuid

from . import control, exports, netns
from .settings import VM
from .util import LabError, Process, remove, run, wait_until

STOP_S = 20
BOOT_ID = "/proc/sys/kernel/random/boot_id"
NICE = -10  # as deploy/systemd/colod@.service has it


class Host:
    def __init__(self, lab, name):
        self.lab = lab
        self.name = name
        self.dir = f"{lab.dir}/{name}"
        self.socket = f"{self.dir}/run/{VM}/control.sock"
        self.state_file = f"{self.dir}/state/{VM}/state"
        self.log = f"{self.dir}/colod.log"
        self.config = f"{self.dir}/{VM}.conf"
        self._exports = {}

    @property
    def room(self):
        return self.lab.topology.name(self.name)

    def make_dirs(self):
        for sub in ("run", "state"):
            os.makedirs(f"{self.dir}/{sub}")
        self.mount_run()

    # Disks

    def image(self, number=0):
        return f"{self.dir}/images/disk{number}.img"

    def export(self, number):
        """The export that the disk is, or None if it is a raw file."""
        kind = self.lab.settings.exports.get(f"{self.name}{number}")
        if kind and number not in self._exports:
            prefix, args = netns.enter_argv(self.room), (f"{self.dir}/images", f"disk{number}")
            self._exports[number] = (exports.Qcow2(*args, self.lab.settings.qemu, prefix) if kind == "qcow2"
                                     else exports.Failing(*args, prefix))
        return self._exports.get(number)

    def exports(self):
        """All of this host, with the processes that serve them, whoever started those."""
        found = [export for export in map(self.export, self.lab.settings.disk_numbers()) if export]
        for export in found:
            if not export.is_alive():
                export.process = next((process for process in self.lab.topology.processes(self.name)
                                       if export.is_served_by(netns.command_line(process.pid))), None)
        return found

    def image_names(self, settings):
        """What the configuration has of each disk."""
        return [self.export(number).uri if self.export(number) else self.image(number)
                for number in settings.disk_numbers()]

    def make_images(self, settings):
        for sub in ("images", "overlays"):
            os.makedirs(f"{self.dir}/{sub}", exist_ok=True)
        for sub, sizes in (("images", settings.images_fs_mib), ("overlays", settings.overlays_fs_mib)):
            if self.name in sizes:
                self.mount(sub, sizes[self.name])
        self._exports = {}
        for number in settings.disk_numbers():
            if self.export(number):
                self.export(number).make(settings.disk_mib << 20)
                continue
            with open(self.image(number), "wb") as file:
                file.truncate(settings.disk_mib << 20)

    def mount(self, sub, mib):
        """A small file system of its own for images or overlays, before colod starts."""
        run("mount", "-t", "tmpfs", "-o", f"size={mib}m", f"colod-lab-{sub}", f"{self.dir}/{sub}")

    def mount_run(self):
        """As /run is: what colod keeps there for its next start is in memory."""
        run("mount", "-t", "tmpfs", "-o", "mode=0755", "colod-lab-run", f"{self.dir}/run")

    def unmount(self):
        for sub in ("images", "overlays", "run"):
            while os.path.ismount(f"{self.dir}/{sub}"):
                run("umount", "-l", f"{self.dir}/{sub}")

    def plugins(self):
        """The disks' processes on this host: {"disk0-mirror": Process, "disk0-target": Process}."""
        found = {}
        for process in self.lab.topology.processes(self.name):
            words = netns.command_line(process.pid)
            control = next((word for word in words if word.startswith("control=")), None)
            if control and "nbdkit" in words[0]:
                found[os.path.basename(control).removesuffix(".ctl")] = process
        return found

    # colod

    def colod(self):
        """The colod that runs here, or None."""
        try:
            with open(f"{self.dir}/colod.pid", encoding="ascii") as file:
                pid, ticks = map(int, file.read().split())
        except (FileNotFoundError, ValueError):
            return None
        process = Process(pid, ticks)
        return process if process.is_alive() else None

    def start_colod(self):
        if self.colod():
            raise LabError(f"colod runs on {self.name} already")
        if os.path.exists(f"{self.dir}/lost-power"):  # /run does not survive that
            run("umount", "-l", f"{self.dir}/run")
            self.mount_run()
            remove(f"{self.dir}/lost-power")
        for export in self.exports():
            if not export.is_alive():
                export.start()
        program = f"{self.lab.settings.build}/colod/colod"
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        if self.lab.settings.clock:
            environment.update(LD_PRELOAD=self.lab.clock_library, COLOD_LAB_CLOCK=f"{self.dir}/clock")
        with open(self.log, "ab") as log:
            log.write(b"--- lab: starting colod\n")
            log.flush()
            child = subprocess.Popen(
                ["nice", "-n", str(NICE), *netns.enter_argv(self.room), *self._life(), program, VM, "--config", self.config,
                 "--run-dir", f"{self.dir}/run", "--state-dir", f"{self.dir}/state"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=self.dir)
        process = Process(child.pid)
        child.returncode = 0  # nobody waits for it here; Process does
        with open(f"{self.dir}/colod.pid", "w", encoding="ascii") as file:
            file.write(f"{process.pid} {process.ticks or 0}\n")
        wait_until(lambda: self.answers() or not process.is_alive(), 20,
                   lambda: f"colod on {self.name} does not answer; its log ends with\n{self.log_tail()}")
        if not process.is_alive():
            raise LabError(f"colod on {self.name} ended at once; its log ends with\n{self.log_tail()}")

    def new_life(self):
        """From the next start on the kernel says another boot id, as after a crash of the host."""
        with open(f"{self.dir}/boot-id", "w", encoding="ascii") as file:
            file.write(f"{uuid.uuid4()}\n")

    def _life(self):
        """What to put before a command, so that it sees that boot id; the pid stays the command's."""
        if not os.path.exists(f"{self.dir}/boot-id"):
            return []
        script = f'mount --bind {self.dir}/boot-id {BOOT_ID} && exec "$@"'
        return ["unshare", "-m", "--propagation", "slave", "--", "sh", "-c", script, "colod"]

    def stop_colod(self):
        process = self.colod()
        if process:
            process.kill(signal.SIGTERM)
            process.wait_gone(STOP_S)

    def log_tail(self, lines=15):
        try:
            with open(self.log, encoding="utf-8", errors="replace") as file:
                return "".join(file.readlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"

    # Control socket

    def call(self, command, timeout=5, **arguments):
        return control.call(self.socket, command, timeout, **arguments)

    def status(self):
        """The status object; None while no colod answers."""
        try:
            return self.call("status", timeout=5)
        except control.ControlGone:
            return None

    def answers(self):
        return self.status() is not None

    def events(self, after=0):
        return self.call("events", after=after)["events"]

    # QEMU

    def recorded_qemu(self):
        """What colod wrote down of it; a pid that is not in this host's namespace is none of ours."""
        try:
            with open(self.state_file, encoding="ascii", errors="replace") as file:
                found = re.search(r"^qemu-pid=(\d+)$", file.read(), re.MULTILINE)
        except FileNotFoundError:
            return None
        pid = int(found.group(1)) if found else 0
        return next((p for p in self.lab.topology.processes(self.name) if p.pid == pid), None)

    def qemus(self):
        """All QEMUs of this host, whatever colod knows of them."""
        found = [process for process in self.lab.topology.processes(self.name)
                 if any("qemu-system" in word for word in netns.command_line(process.pid)[:8])
                 and "-netdev" in netns.command_line(process.pid)]
        recorded = self.recorded_qemu()
        if recorded and recorded.pid not in [process.pid for process in found]:
            found.append(recorded)
        return found

    def qemu(self):
        """The QEMU of the VM, or LabError."""
        recorded = self.recorded_qemu()
        if recorded:
            return recorded
        found = self.qemus()
        if len(found) != 1:
            raise LabError(f"{len(found)} QEMUs run on host {self.name}")
        return found[0]

    def everything(self):
        """colod first: who stops them one by one must not let it see the others go."""
        found = [self.colod()] if self.colod() else []
        return [*found, *self.qemus(), *self.plugins().values(),
                *(export.process for export in self.exports() if export.is_alive())]

    def summary(self):
        status = self.status()
        if status is None:
            return {"host": self.name, "colod": "does not run", "qemu": [p.pid for p in self.qemus()]}
        return status

    def describe(self):
        return f"{self.name}: {json.dumps(self.summary())}"
