# SPDX-License-Identifier: LGPL-2.1-or-later
"""capture.py - the newest headers on the client's link, in a ring of files, to be kept when something fails."""
import glob
import os
import shutil
import signal
import subprocess

from . import netns
from .util import LabError, wait_until

SNAP = 128  # headers with all options
FILE_MB = 12
FILES = 4


class Capture:
    def __init__(self, lab):
        self.lab = lab
        self.dir = f"{lab.dir}/capture"
        self.process = None

    def start(self):
        os.makedirs(self.dir, exist_ok=True)
        try:
            self.process = subprocess.Popen(
                [*netns.enter_argv(self.lab.topology.name("c")), "tcpdump", "-i", "lan0", "-n", "-U", "-s", str(SNAP),
                 "-C", str(FILE_MB), "-W", str(FILES), "-B", "8192", "-Z", "root", "-w", f"{self.dir}/client.pcap"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise LabError("tcpdump is not installed: run deploy/install-deps --test") from error
        wait_until(lambda: glob.glob(f"{self.dir}/client.pcap*"), 10, "tcpdump writes")

    def save(self, target):
        os.makedirs(target, exist_ok=True)
        for path in glob.glob(f"{self.dir}/client.pcap*"):
            shutil.copy(path, target)

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(10)
            self.process = None
