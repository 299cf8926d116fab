# SPDX-License-Identifier: LGPL-2.1-or-later
"""Of lablib/util.py what others stand on without looking."""
import subprocess
import sys

from lablib.util import Process, wait_until

FIRST_THREAD_ENDS = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def state(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def test_process_lives_as_long_as_its_last_thread():
    """Which holds its files, and a lock on an image, while the first one is a zombie already."""
    with subprocess.Popen([sys.executable, "-c", FIRST_THREAD_ENDS], stdin=subprocess.PIPE) as child:
        process = Process(child.pid)
        wait_until(lambda: state(child.pid) == "Z", 20, "the first thread does not end")
        assert process.is_alive()
        child.stdin.close()
        process.wait_gone(20)
