# SPDX-License-Identifier: LGPL-2.1-or-later
"""netns.py - network namespaces: entering one, running in one, what runs in one.

`ip netns exec` would also make a private mount namespace, in which /sys and mounts differ; nsenter does not.
"""
import contextlib
import ctypes
import os

from .util import Process, run

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def path(name):
    return f"/run/netns/{name}"


def exists(name):
    return os.path.exists(path(name))


def enter_argv(name):
    """What to put before a command to run it in the namespace; the pid stays the command's."""
    return ["nsenter", f"--net={path(name)}", "--"]


def _setns(fd):
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


@contextlib.contextmanager
def inside(name):
    """This thread alone is in the namespace; sockets made there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(path(name), os.O_RDONLY)
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def add(name):
    run("ip", "netns", "add", name)


def delete(name):
    if exists(name):
        run("ip", "netns", "del", name)


def processes(name):
    """All processes whose network namespace it is."""
    try:
        wanted = os.stat(path(name))
    except FileNotFoundError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            have = os.stat(f"/proc/{entry}/ns/net")
        except OSError:
            continue
        if (have.st_dev, have.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(Process(int(entry)))
    return [process for process in found if process.is_alive()]


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").split("\0")
    except OSError:
        return []
