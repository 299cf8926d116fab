#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""demo-client.py - a download from the lab's guest in the middle of which the primary's QEMU is killed.

Prints a time line made of the survivor's events and the client's own time stamps, which are of one clock.
A guest with a disk writes records and rows of a data base all the while.
Exit status 0 only if every byte and the checksum are right, and all that was acknowledged is on the disk.
"""
import argparse
import hashlib
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
from lablib.clients import MIB, Blob, Download  # noqa: E402
from lablib.disk import Writer, fsck  # noqa: E402
from lablib.lab import Lab  # noqa: E402
from lablib.util import LabError  # noqa: E402

BLOB_MIB = 64
DONE_S = 120


class SummedDownload(Download):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.digest = hashlib.sha256()

    def _take(self, data):
        self.digest.update(data)
        super()._take(data)


def show_progress(download, until_bytes):
    step = 8 * MIB
    while download.received < until_bytes:
        goal = min(until_bytes, (download.received // step + 1) * step)
        download.wait_more(goal - download.received, 60)
        print(f"      {download.received / MIB:5.1f} MiB", flush=True)


def first_event(events, condition):
    return next((event for event in events if condition(event)), None)


def longest_pause(times_ns, since_ns, until_ns):
    """(last byte before, first byte after) of the longest pause that ends after since_ns and begins before until_ns."""
    return max(((a, b) for a, b in zip(times_ns, times_ns[1:]) if b > since_ns and a < until_ns),
               key=lambda pair: pair[1] - pair[0], default=(0, 0))


def time_line(events, killed_ns, download):
    """Pairs (ns, text), in order."""
    def has(event, *words):
        text = f"{event['event']} {event['text']}".lower()
        return all(word in text for word in words)

    lines = [(killed_ns, "SIGKILL for the primary's QEMU")]
    marks = (("detected", lambda e: True),
             ("claimed", lambda e: has(e, "claim", "granted")),
             ("running", lambda e: has(e, "taking-over", "alone")))
    for name, condition in marks:
        event = first_event(events, condition)
        if event is None:
            raise LabError(f"the survivor's events do not tell when it was '{name}':\n"
                           + "\n".join(f"{e['event']}: {e['text']}" for e in events))
        lines.append((event["monotonic_us"] * 1000, f"{name}: {event['text']}"))
    copying = first_event(events, lambda e: has(e, "preparing -> migrating"))
    copying_ns = copying["monotonic_us"] * 1000 if copying else 1 << 62
    last, first = longest_pause(download.times_ns, killed_ns, copying_ns)
    lines.append((last, "client: last byte before the pause"))
    lines.append((first, f"client: first byte after, a pause of {(first - last) / 1e6:.0f} ms"))
    if copying:
        lines.append((copying_ns, "protected anew: memory is copied to the new secondary"))
        last, first = longest_pause(download.times_ns, copying_ns, 1 << 62)
        lines.append((first, f"client: first byte after the copy, a pause of {(first - last) / 1e6:.0f} ms "
                             "(under TCG the guest stands meanwhile)"))
    return sorted(lines)


def show_disk(lab, writers, before):
    """All that the guest acknowledged as written is there, before and after the kill."""
    for writer in writers:
        writer.wait_more(3)
        writer.stop()
    for writer, count in zip(writers, before):
        found = writer.verify()
        what = "records written with fdatasync" if writer.kind == "records" else "rows of SQLite, committed"
        print(f"  disk: {what}: {count} acknowledged when the primary died, {writer.acked} in the end, all {found} found")
    if writers:
        fsck(lab)
        print("  disk: e2fsck finds nothing")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rate", type=int, default=12, metavar="MIB", help="at most so many MiB a second")
    parser.add_argument("--kill-at", type=int, default=24, metavar="MIB")
    args = parser.parse_args()
    lab = Lab()
    with open(f"{lab.settings.guest}/blob.sha256", encoding="ascii") as file:
        wanted = file.read().strip()
    survivor = lab.host("b")
    seen = max((event["seq"] for event in survivor.events()), default=0)
    Blob.differs(0, b"\0")  # makes its table now

    writers = [Writer(lab, kind) for kind in ("records", "wal")] if lab.settings.disk_mib else []
    for writer in writers:
        writer.start()
        writer.wait_more(1)
    download = SummedDownload(lab, BLOB_MIB, rate=args.rate * MIB)
    download.start()
    show_progress(download, args.kill_at * MIB)
    before = [writer.acked for writer in writers]
    killed_ns = time.monotonic_ns()
    lab.kill("a", "qemu")
    print("      ---- SIGKILL ----", flush=True)
    show_progress(download, BLOB_MIB * MIB)
    download.wait_done(DONE_S)
    end_ns = time.monotonic_ns()

    lines = time_line(survivor.events(after=seen), killed_ns, download)
    for when, text in [*lines, (end_ns, f"client: all {download.received} bytes are there")]:
        print(f"  {(when - killed_ns) / 1e6:+9.1f} ms  {text}")
    have = download.digest.hexdigest()
    print(f"  checksum of the client  {have}\n  checksum of the guest   {wanted}")
    if have != wanted:
        raise LabError("the checksums differ")
    show_disk(lab, writers, before)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"demo-client: error: {error}")
