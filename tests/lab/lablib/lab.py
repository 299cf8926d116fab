# SPDX-License-Identifier: LGPL-2.1-or-later
"""lab.py - the lab: bringing it up and down, and everything that can be done to it."""
import contextlib
import fcntl
import http.client
import os
import shutil
import signal
import socket
import struct

from . import netns, topology
from .host import Host
from .settings import VM, Settings
from .util import LabError, run, say, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
UP_S = 90
HTTP_S = 20
PLUGINS = ("target", "mirror", "target1", "mirror1")


class GuestConnection(http.client.HTTPConnection):
    """HTTP to the guest from the client's namespace."""

    def __init__(self, lab, timeout, port=80):
        super().__init__(topology.GUEST_ADDRESS, port, timeout=timeout)
        self.lab = lab

    def connect(self):
        self.sock = self.lab.client_socket()
        self.sock.settimeout(self.timeout)
        self.sock.connect((self.host, self.port))


class Lab:
    def __init__(self, lab_id=None):
        self.id = os.environ.get("COLOD_LAB_ID", "") if lab_id is None else lab_id
        self.dir = os.environ.get("COLOD_LAB_DIR", "/run/cldlab") + (f"-{self.id}" if self.id else "")
        self.topology = topology.Topology(f"cldlab{self.id}")
        self.hosts = {name: Host(self, name) for name in topology.HOSTS}
        self._settings = None

    @property
    def settings(self):
        if self._settings is None:
            self._settings = Settings.load(f"{self.dir}/settings.json")
        return self._settings

    def host(self, name):
        if name not in self.hosts:
            raise LabError(f"unknown host '{name}': a or b")
        return self.hosts[name]

    def is_up(self):
        return os.path.exists(f"{self.dir}/settings.json")

    @contextlib.contextmanager
    def lock(self):
        """One up or down at a time."""
        os.makedirs(os.path.dirname(self.dir), exist_ok=True)
        with open(f"{self.dir}.lock", "w", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # Up and down

    def up(self, settings, progress=say):
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: run it as root")
        settings.build = os.path.abspath(settings.build or f"{SOURCE}/build/dev")
        settings.check()
        with self.lock():
            if os.path.exists(self.dir) or self.topology.is_there():
                raise LabError(f"{self.dir} or its namespaces are there already: lab down removes them")
            progress("1/5 QEMU and guest")
            settings.qemu = run(f"{SOURCE}/tests/lab/qemu-root", timeout=900).strip()
            settings.guest = run(f"{SOURCE}/tests/lab/guest-image", timeout=900).strip()
            progress("2/5 namespaces, certificates, configuration")
            self._make_files(settings)
            self.topology.create()
        self._start_all(progress)

    def _make_files(self, settings):
        os.makedirs(f"{self.dir}/arbiter")
        settings.save(f"{self.dir}/settings.json")
        if settings.clock:
            run("cc", "-shared", "-fPIC", "-O2", "-o", self.clock_library, f"{SOURCE}/tests/lab/clock-shim.c")
        self._settings = settings
        pki = self.colo_pki()
        run(*pki, "init", f"{self.dir}/ca")
        for host in self.hosts.values():
            host.make_dirs()
            self._write_clock(host, 0)
            run(*pki, "host", f"{self.dir}/ca", f"{host.name}={topology.PEER_ADDRESS[host.name]}", f"{host.dir}/pki")
            host.make_images(settings)
            with open(host.config, "w", encoding="utf-8") as file:
                file.write(settings.config_text(host.name, host.dir, f"{self.dir}/arbiter", host.image_names(settings)))

    def _start_all(self, progress):
        """The guest boots before it is protected.

        Under emulation QEMU 11 does not drop translated code when it loads a checkpoint, so a secondary whose guest's
        code changes (as it does while a kernel boots) may run code that is no longer there. KVM has no such cache.
        """
        progress("3/5 starting the primary's colod; waiting until the guest answers")
        self.hosts["a"].start_colod()
        if self.settings.arbiter == "manual":  # without a peer nobody else can tell that it may
            self.hosts["a"].call("failover", timeout=30)
        with open(f"{self.settings.guest}/index.html", "rb") as file:
            index = file.read()
        self._wait_guest(index, UP_S)
        progress("4/5 starting the secondary's colod; waiting until the guest is protected")
        self.hosts["b"].start_colod()
        self.wait_protected("a", UP_S)
        progress("5/5 waiting until the guest answers under protection")
        self._wait_guest(index, HTTP_S)

    def _wait_guest(self, index, seconds):
        wait_until(lambda: self.http_get("/index.html", 1) == index, seconds,
                   lambda: f"the guest does not serve /index.html; {self.describe()}")

    def down(self):
        with self.lock():
            for host in self.hosts.values():
                colod = host.colod()
                if colod:
                    colod.destroy()
            for room in topology.ROOMS:
                for process in self.topology.processes(room):
                    process.destroy()
            for host in self.hosts.values():
                host.unmount()
            self.topology.delete()
            shutil.rmtree(self.dir, ignore_errors=True)
        self._settings = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.dir}.lock")

    # Looking

    def statuses(self):
        return {name: host.status() for name, host in self.hosts.items()}

    def states(self):
        return {name: status["state"] if status else None for name, status in self.statuses().items()}

    def describe(self):
        return "; ".join(host.describe() for host in self.hosts.values())

    def primary(self):
        """Name of the host that is primary of a protected pair, None if there is no such pair."""
        found = self.statuses()
        for name, other in (("a", "b"), ("b", "a")):
            if not found[name] or not found[other]:
                continue
            if (found[name]["state"] == "protected" and found[name]["protected"]
                    and found[other]["state"] == "standby"):
                return name
        return None

    def wait_protected(self, primary=None, seconds=UP_S):
        """Returns the primary's name."""
        def check():
            for host in self.hosts.values():
                if self.colod_expected(host) and not host.colod():
                    raise LabError(f"colod on {host.name} is gone; its log ends with\n{host.log_tail()}")
            found = self.primary()
            return found if found and primary in (None, found) else None
        return wait_until(check, seconds, lambda: f"protected; {self.describe()}", poll=0.03)

    def wait_protected_after(self, generation, seconds=UP_S):
        """The same of a pair in a later generation."""
        wait_until(lambda: any(s and s["generation"] > generation for s in self.statuses().values()), seconds,
                   lambda: f"a generation after {generation}; {self.describe()}")
        return self.wait_protected(None, seconds)

    @staticmethod
    def colod_expected(host):
        return os.path.exists(f"{host.dir}/colod.pid") and not os.path.exists(f"{host.dir}/killed")

    def save_logs(self, target):
        """All that both hosts know, into a folder that is made anew."""
        shutil.rmtree(target, ignore_errors=True)
        for name, host in self.hosts.items():
            os.makedirs(f"{target}/{name}")
            for path in (host.log, host.config, host.state_file, f"{host.dir}/run/{VM}/qemu.log",
                         f"{host.dir}/run/{VM}/console.log", f"{host.dir}/run/{VM}/qmp.log"):
                with contextlib.suppress(OSError):
                    shutil.copy(path, f"{target}/{name}/")
            self._save_differences(host, f"{target}/{name}/differences")
        with open(f"{target}/status", "w", encoding="utf-8") as file:
            with contextlib.suppress(LabError):
                file.write(self.describe() + "\n")

    def _save_differences(self, host, target):
        """The frames in which the guests differed last, for colo-replay and wireshark."""
        if self.settings.mode != "lockstep" or not host.colod():
            return
        os.makedirs(target)
        with contextlib.suppress(LabError):
            host.call("explain", save=target)

    # Clocks

    @property
    def clock_library(self):
        return f"{self.dir}/clock-shim.so"

    def _days_ago(self):
        """What to put before a command to run it two days ago: certificates must be valid on a host whose clock jumps back."""
        if not self.settings.clock:
            return []
        with open(f"{self.dir}/days-ago", "wb") as file:
            file.write(struct.pack("q", -2 * 86400))
        return ["env", f"LD_PRELOAD={self.clock_library}", f"COLOD_LAB_CLOCK={self.dir}/days-ago"]

    def colo_pki(self):
        """The first words of its command line."""
        return [*self._days_ago(), f"{SOURCE}/deploy/colo-pki"]

    @staticmethod
    def _write_clock(host, seconds):
        """In place: it is mapped."""
        with open(f"{host.dir}/clock", "r+b" if os.path.exists(f"{host.dir}/clock") else "wb") as file:
            file.write(struct.pack("q", seconds))

    def jump_clock(self, name, seconds):
        """The wall clock of the host's colod, QEMU and disks' processes (Settings.clock) is so much ahead of what it is now."""
        host = self.host(name)
        with open(f"{host.dir}/clock", "rb") as file:
            now, = struct.unpack("q", file.read())
        self._write_clock(host, now + int(seconds))

    # Client

    def client_socket(self, kind=socket.SOCK_STREAM, family=socket.AF_INET, proto=0):
        with netns.inside(self.topology.name("c")):
            return socket.socket(family, kind, proto)

    def http_get(self, path, timeout=3):
        """The body, or None if the guest does not answer."""
        connection = GuestConnection(self, timeout)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def guest_script(self, text, timeout=30):
        """Runs a shell script in the guest and returns what it printed; LabError if it fails."""
        connection = GuestConnection(self, timeout, 8080)
        try:
            connection.request("POST", "/cgi-bin/sh", body=text.encode(), headers={"Connection": "close"})
            answer = connection.getresponse().read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise LabError(f"the guest does not run '{text}': {type(error).__name__}: {error}") from error
        finally:
            connection.close()
        output, _, status = answer.rpartition("exit ")
        if status.strip() != "0":
            raise LabError(f"'{text}' failed in the guest: {answer}")
        return output

    def guest_command(self, text, timeout=10):
        """One line to the guest's port 9 and its answer."""
        with self.client_socket() as sock:
            sock.settimeout(timeout)
            sock.connect((topology.GUEST_ADDRESS, 9))
            sock.sendall(text.encode() + b"\n")
            answer = sock.makefile().readline().strip()
        if not answer.startswith("ok"):
            raise LabError(f"the guest answered '{answer}' to '{text}'")
        return answer

    # Faults

    def kill(self, name, what):
        host = self.host(name)
        if what == "qemu":
            host.qemu().kill(signal.SIGKILL)
        elif what == "colod":
            self._mark_killed(host)
            colod = host.colod()
            if not colod:
                raise LabError(f"no colod runs on {name}")
            colod.kill(signal.SIGKILL)
            colod.wait_gone(10)
        elif what == "host":
            self._power_off(host)
        elif what == "export":
            for export in host.exports():
                export.kill()
        elif what in PLUGINS:
            self._plugin(host, what).kill(signal.SIGKILL)
        else:
            raise LabError(f"kill what? qemu, colod, host, export, {', '.join(PLUGINS)}, not '{what}'")

    @staticmethod
    def _plugin(host, what):
        """The process of the first disk, or of the one with that number."""
        name = f"disk{what[6:] or 0}-{what[:6]}"
        found = host.plugins().get(name)
        if not found:
            raise LabError(f"no {name} runs on {host.name}: {', '.join(host.plugins()) or 'none at all'}")
        return found

    @staticmethod
    def _mark_killed(host):
        with open(f"{host.dir}/killed", "w", encoding="ascii"):
            pass

    def _power_off(self, host):
        """First the links, so that no dying process can say goodbye."""
        processes = host.everything()
        self._mark_killed(host)
        self._unplug_all(host.name)
        # Also what colod is just starting and is not known by its arguments yet; then what that has started.
        while processes:
            for process in processes:
                process.kill(signal.SIGKILL)
            for process in processes:
                process.wait_gone(10)
            processes = self.topology.processes(host.name)
        with open(f"{host.dir}/lost-power", "w", encoding="ascii"):
            pass

    def _unplug_all(self, name):
        self.topology.unplug("lan", name)
        self.topology.unplug("peer", name)

    def _plug_all(self, name):
        self.topology.plug("lan", name)
        if not os.path.exists(f"{self.dir}/cut"):
            self.topology.plug("peer", name)

    def freeze(self, name, what):
        """host: as when its CPUs stand still. Nothing of it runs, nor does its kernel answer anybody."""
        host = self.host(name)
        if what == "qemu":
            host.qemu().kill(signal.SIGSTOP)
        elif what == "colod":
            host.colod().kill(signal.SIGSTOP)
        elif what == "export":
            for export in host.exports():
                export.process.kill(signal.SIGSTOP)
        elif what in PLUGINS:
            self._plugin(host, what).kill(signal.SIGSTOP)
        elif what == "host":
            processes = host.everything()
            self._unplug_all(name)
            for process in processes:
                process.kill(signal.SIGSTOP)
        else:
            raise LabError(f"freeze what? qemu, colod, host, export, {', '.join(PLUGINS)}, not '{what}'")

    def thaw(self, name, what):
        host = self.host(name)
        if what == "qemu":
            for process in host.qemus():
                process.kill(signal.SIGCONT)
        elif what == "colod":
            host.colod().kill(signal.SIGCONT)
        elif what == "export":
            for export in host.exports():
                export.process.kill(signal.SIGCONT)
        elif what in PLUGINS:
            self._plugin(host, what).kill(signal.SIGCONT)
        elif what == "host":
            self._plug_all(name)
            for process in host.everything():
                process.kill(signal.SIGCONT)
        else:
            raise LabError(f"thaw what? qemu, colod, host, export, {', '.join(PLUGINS)}, not '{what}'")

    def cut(self):
        """The peer link goes silent; carrier and addresses stay on both hosts."""
        with open(f"{self.dir}/cut", "w", encoding="ascii"):
            pass
        self.topology.unplug("peer", "a")

    def heal(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.dir}/cut")
        for name in self.hosts:
            self.topology.plug("peer", name)

    def start(self, name):
        host = self.host(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{host.dir}/killed")
        self._plug_all(name)
        host.start_colod()

    def stop(self, name):
        host = self.host(name)
        self._mark_killed(host)
        host.stop_colod()
