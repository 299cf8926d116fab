#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""test-captures.py - real programs' traffic, replayed against itself and against changed copies

Records what a server sends (TCP by curl, UDP, ping, IPv6, fragments) between two network namespaces
of its own, then runs colo-replay on the capture and on perturbed copies. Exit code 77: cannot be run
here, with the reason.

Usage: test-captures.py PATH-OF-COLO-REPLAY
"""
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time

SKIP = 77
A, B = "cldc-a%d" % os.getpid(), "cldc-b%d" % os.getpid()

SERVER = """
import http.server, socket, threading
def udp(family, address):
    s = socket.socket(family, socket.SOCK_DGRAM); s.bind((address, 5300))
    while True:
        data, peer = s.recvfrom(65536)
        s.sendto(data[::-1] * 3, peer)
for f, a in ((socket.AF_INET, '10.99.0.1'), (socket.AF_INET6, 'fd99::1')):
    threading.Thread(target=udp, args=(f, a), daemon=True).start()
class V6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
V6(('::', 8080), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
CLIENT_UDP = """
import socket, sys
for f, a in ((socket.AF_INET, '10.99.0.1'), (socket.AF_INET6, 'fd99::1')):
    s = socket.socket(f, socket.SOCK_DGRAM); s.settimeout(5)
    for n in (10, 400, 1000, 3000):
        s.sendto(bytes(range(n % 251)) * (n // (n % 251) + 1), (a, 5300)); s.recv(65536)
"""


def skip(why):
    print("SKIP:", why)
    sys.exit(SKIP)


def run(*argv, **kw):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)


def inside(ns, *argv):
    return ("ip", "netns", "exec", ns) + argv


def wait_for(what, condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)


def lab_up():
    run("ip", "netns", "add", A)
    run("ip", "netns", "add", B)
    run("ip", "link", "add", "va", "netns", A, "type", "veth", "peer", "name", "vb", "netns", B)
    for ns, dev, n in ((A, "va", 1), (B, "vb", 2)):
        run(*inside(ns, "ip", "addr", "add", "10.99.0.%d/24" % n, "dev", dev))
        run(*inside(ns, "ip", "addr", "add", "fd99::%d/64" % n, "dev", dev, "nodad"))
        run(*inside(ns, "ip", "link", "set", dev, "up"))
        run(*inside(ns, "ip", "link", "set", "lo", "up"))


def lab_down():
    for ns in (A, B):
        subprocess.run(("ip", "netns", "del", ns), stderr=subprocess.DEVNULL)


def answers(url):
    return subprocess.run(inside(B, "curl", "-s", "-o", "/dev/null", "-g", "-m", "5", url)).returncode == 0


def record(directory):
    """Returns the path of a capture of everything the server's side sent."""
    path = os.path.join(directory, "server.pcap")
    with open(os.path.join(directory, "file"), "wb") as f:
        f.write(random.Random(1).randbytes(3_000_000))
    server = subprocess.Popen(inside(A, sys.executable, "-c", SERVER), cwd=directory,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    dump = subprocess.Popen(inside(A, "tcpdump", "-i", "va", "-Q", "out", "-w", path, "-U", "-s", "0",
                                   "-B", "65536", "--immediate-mode"),
                            stderr=subprocess.PIPE)
    try:
        wait_for("capture", lambda: os.path.exists(path) and os.path.getsize(path) >= 24)
        wait_for("server", lambda: answers("http://10.99.0.1:8080/"))
        for url in ("http://10.99.0.1:8080/file", "http://[fd99::1]:8080/file",
                    "http://10.99.0.1:8080/no-such-file", "http://10.99.0.1:8081/closed-port"):
            answers(url)
        run(*inside(B, sys.executable, "-c", CLIENT_UDP))
        run(*inside(B, "ping", "-c", "5", "-i", "0.05", "10.99.0.1"))
        run(*inside(B, "ping", "-c", "3", "-i", "0.05", "-s", "4000", "fd99::1"))
        size = -1
        while size != os.path.getsize(path):  # until nothing is added any more
            size = os.path.getsize(path)
            time.sleep(0.3)
    finally:
        dump.terminate()
        dump.wait()
        server.kill()
        server.wait()
    return path


def load(path):
    with open(path, "rb") as f:
        data = f.read()
    packets, at = [], 24
    while at < len(data):
        sec, usec, caplen, length = struct.unpack_from("<IIII", data, at)
        packets.append([sec * 1_000_000 + usec, bytearray(data[at + 16:at + 16 + caplen])])
        at += 16 + caplen
    return data[:24], packets


def store(path, header, packets):
    with open(path, "wb") as f:
        f.write(header)
        for when, data in packets:
            f.write(struct.pack("<IIII", when // 1_000_000, when % 1_000_000, len(data), len(data)))
            f.write(data)


def layout(data):
    """(protocol, offset of its header, of its payload, end) or None; no fragments."""
    kind = struct.unpack_from(">H", data, 12)[0]
    if kind == 0x0800 and not struct.unpack_from(">H", data, 20)[0] & 0x3fff:
        proto, l4, end = data[23], 14 + (data[14] & 15) * 4, 14 + struct.unpack_from(">H", data, 16)[0]
    elif kind == 0x86dd and data[20] in (6, 17, 58):
        proto, l4, end = data[20], 54, 54 + struct.unpack_from(">H", data, 18)[0]
    else:
        return None
    head = {6: (data[l4 + 12] >> 4) * 4 if len(data) > l4 + 12 else 0, 17: 8}.get(proto, 8)
    return proto, l4, l4 + head, end


def copy(packets):
    return [[when, bytearray(data)] for when, data in packets]


def is_syn(data):
    where = layout(data)
    return bool(where) and where[0] == 6 and bool(data[where[1] + 13] & 2)


def delayed(packets):
    """Nothing overtakes a SYN: what does is held until the timeout, as docs/compare.md says."""
    rng = random.Random(2)
    return sorted(([when + (0 if is_syn(data) else rng.randrange(3000)), data]
                   for when, data in copy(packets)), key=lambda p: p[0])


def other_numbers(packets):
    """As another host would have chosen its initial sequence numbers and IP identifications."""
    out = copy(packets)
    for _, data in out:
        where = layout(data)
        if where and where[0] == 6:
            l4 = where[1]
            (seq,) = struct.unpack_from(">I", data, l4 + 4)
            if not (data[l4 + 13] & 4 and seq == 0):  # the RST of a closed port has none of its own
                port = struct.unpack_from(">H", data, l4 + 2)[0]
                struct.pack_into(">I", data, l4 + 4, (seq + 0x12345678 * port) & 0xffffffff)
        if struct.unpack_from(">H", data, 12)[0] == 0x0800 and where:
            data[18] ^= 0x5a
    return out


def resegmented(packets):
    """Large TCP segments cut in two."""
    out = []
    for when, data in copy(packets):
        where = layout(data)
        if not where or where[0] != 6 or where[3] - where[2] < 200 or \
                struct.unpack_from(">H", data, 12)[0] != 0x0800:
            out.append([when, data])
            continue
        _, l4, payload, end = where
        cut = payload + (end - payload) // 3
        first, second = bytearray(data[:cut]), bytearray(data[:payload] + data[cut:end])
        struct.pack_into(">H", first, 16, cut - 14)
        struct.pack_into(">H", second, 16, len(second) - 14)
        (seq,) = struct.unpack_from(">I", data, l4 + 4)
        struct.pack_into(">I", second, l4 + 4, (seq + cut - payload) & 0xffffffff)
        first[l4 + 13] &= ~1 & 0xff  # FIN belongs to the last
        out += [[when, first], [when, second]]
    return out


def changed_byte(packets, protocol):
    out = copy(packets)
    hits = [d for _, d in out if layout(d) and layout(d)[0] == protocol and layout(d)[3] > layout(d)[2] + 8]
    data = hits[len(hits) // 2]
    data[layout(data)[3] - 3] ^= 1
    return out


def without_one(packets):
    out = copy(packets)
    hits = [i for i, (_, d) in enumerate(out)
            if layout(d) and layout(d)[0] == 6 and layout(d)[3] - layout(d)[2] > 500]
    del out[hits[len(hits) // 2]]
    return out


def replay(tool, *argv):
    p = subprocess.run((tool, "--json") + argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return p.returncode, json.loads(p.stdout) if p.returncode < 2 else p.stderr


def check(ok, what):
    print("ok" if ok else "FAILED", "-", what, flush=True)
    return ok


def run_cases(tool, directory, original):
    header, packets = load(original)
    path = os.path.join(directory, "copy.pcap")

    def case(name, changed, status, *options):
        store(path, header, changed)
        code, result = replay(tool, original, path, *options)
        good = code == status and isinstance(result, dict) and \
            result["released"] == result["primary_frames"] == len(packets) and \
            (status == 0) == (not result["divergences"])
        return check(good, "%s: exit %d, expected %d%s" %
                     (name, code, status, "" if good else ": %.2000s" % result))

    protocols = {layout(d)[0] for _, d in packets if layout(d)}
    oks = [check({1, 6, 17, 58} <= protocols, "%d packets recorded, protocols %s" % (len(packets), protocols)),
           case("itself", packets, 0),
           case("itself, numbers exact", packets, 0, "--no-seq-rewrite"),
           case("delayed and reordered", delayed(packets), 0),
           case("other initial numbers", other_numbers(packets), 0),
           case("other initial numbers, exact", other_numbers(packets), 1, "--no-seq-rewrite"),
           case("cut differently", resegmented(packets), 0),
           case("a TCP byte changed", changed_byte(packets, 6), 1),
           case("a UDP byte changed", changed_byte(packets, 17), 1),
           case("an ICMP byte changed", changed_byte(packets, 1), 1),
           case("a segment missing", without_one(packets), 1)]
    with open(path, "wb") as f, open(original, "rb") as whole:
        f.write(whole.read()[:-7])
    code, message = replay(tool, original, path)
    oks.append(check(code == 2 and "copy.pcap: packet %d" % len(packets) in message,
                     "truncated file: exit %d, %r" % (code, message)))
    return all(oks)


def main():
    tool = os.path.abspath(sys.argv[1])
    for needed in ("ip", "tcpdump", "curl", "ping"):
        if not shutil.which(needed):
            skip("no " + needed)
    if os.geteuid() != 0:
        skip("network namespaces need root")
    try:
        lab_up()
    except subprocess.CalledProcessError as e:
        lab_down()
        skip("no network namespaces: %s" % e.stderr.decode().strip())
    with tempfile.TemporaryDirectory(prefix="colo-captures-") as directory:
        os.chmod(directory, 0o755)  # tcpdump gives up root
        try:
            original = record(directory)
        finally:
            lab_down()
        sys.exit(0 if run_cases(tool, directory, original) else 1)


main()
