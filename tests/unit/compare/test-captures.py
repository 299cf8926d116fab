#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""test-captures.py - real programs' traffic, replayed against itself and against changed copies

Records what a server sends to curl, ping, UDP over both IPs, ssh, iperf3 and dig between two network
namespaces of its own, a capture for each kind, then runs colo-replay on it and on perturbed copies. A
program that is missing is a failure. Exit code 77: no network namespaces here, with the reason.

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


class Servers:
    """Programs in the server's namespace; ended by leaving the context."""

    def __init__(self, directory):
        self.directory = directory
        self.children = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            child.kill()
            child.wait()

    def start(self, *argv):
        with open(os.path.join(self.directory, "servers.log"), "ab") as log:
            child = subprocess.Popen(inside(A, *argv), cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.children.append(child)


def web(directory, servers):
    """TCP, UDP and ICMP over IPv4 and IPv6, fragments, a closed port."""
    with open(os.path.join(directory, "file"), "wb") as f:
        f.write(random.Random(1).randbytes(3_000_000))
    servers.start(sys.executable, "-c", SERVER)
    wait_for("server", lambda: answers("http://10.99.0.1:8080/"))
    for url in ("http://10.99.0.1:8080/file", "http://[fd99::1]:8080/file",
                "http://10.99.0.1:8080/no-such-file", "http://10.99.0.1:8081/closed-port"):
        answers(url)
    run(*inside(B, sys.executable, "-c", CLIENT_UDP))
    run(*inside(B, "ping", "-c", "5", "-i", "0.05", "10.99.0.1"))
    run(*inside(B, "ping", "-c", "3", "-i", "0.05", "-s", "4000", "fd99::1"))


def ssh(directory, servers):
    """A login by key: commands that answer little and much, and input that comes back."""
    home = os.path.join(directory, "home")
    os.makedirs(os.path.join(home, ".ssh"), 0o700)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", os.path.join(directory, "key"))
    shutil.copy(os.path.join(directory, "key.pub"), os.path.join(home, ".ssh", "authorized_keys"))
    run("dropbearkey", "-t", "ed25519", "-f", os.path.join(directory, "hostkey"))
    # The bind mount is in the mount namespace that `ip netns exec` made; nobody else sees it.
    servers.start("sh", "-c", 'mount --bind "$1" /root && exec dropbear -F -E -s -p 10.99.0.1:2222 -r "$2" -P ""', "sh",
                  home, os.path.join(directory, "hostkey"))

    def session(*command, data=b""):
        argv = inside(B, "ssh", "-F", "none", "-p", "2222", "-i", os.path.join(directory, "key"),
                      "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes",
                      "-o", "ConnectTimeout=5", "root@10.99.0.1", *command)
        done = subprocess.run(argv, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30)
        return done.stdout if done.returncode == 0 else None

    wait_for("ssh", lambda: session("true") is not None)
    big = session("head -c 400000 /dev/zero")
    assert big == bytes(400_000), "ssh brought something else"
    text = random.Random(3).randbytes(50_000)
    assert session("cat", data=text) == text
    assert session("-tt", "for i in 1 2 3; do echo line $i; done; exit 0") is not None


def iperf3(_, servers):
    """TCP in both directions, one and several streams, and UDP."""
    servers.start("iperf3", "-s", "-B", "10.99.0.1")

    def measure(*options):
        return subprocess.run(inside(B, "iperf3", "-c", "10.99.0.1", "--connect-timeout", "1000", *options),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30).returncode == 0

    wait_for("iperf3", lambda: measure("-n", "1M"))
    for options in (("-n", "2M"), ("-R", "-n", "4M"), ("-R", "-P", "2", "-n", "2M"),
                    ("-R", "-u", "-b", "100M", "-l", "1400", "-n", "1M")):
        # The server serves one at a time and takes a moment to be ready for the next.
        wait_for("iperf3 " + " ".join(options), lambda: measure(*options))


def dns(_, servers):
    """Answers over UDP, an answer that is cut there and asked for again over TCP, names that do not exist."""
    big = ",".join("%040d" % n for n in range(60))
    servers.start("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
                  "--pid-file=", "--listen-address=10.99.0.1", "--bind-interfaces", "--local=/test/",
                  "--host-record=www.test,10.1.2.3,fd00::3", "--txt-record=big.test," + big)

    def ask(*question):
        done = subprocess.run(inside(B, "dig", "@10.99.0.1", "+tries=1", "+time=2", *question),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return done.stdout if done.returncode == 0 else ""

    wait_for("dns", lambda: "10.1.2.3" in ask("www.test", "A"))
    assert "fd00::3" in ask("www.test", "AAAA")
    for number in range(20):
        assert "NXDOMAIN" in ask("no%d.test" % number, "A")
    assert "10.1.2.3" in ask("+tcp", "www.test", "A")
    assert "%040d" % 59 in ask("big.test", "TXT"), "the long answer does not come over TCP"


def record(directory, what):
    """Returns the path of a capture of everything the server's side sent."""
    path = os.path.join(directory, what.__name__ + ".pcap")
    dump = subprocess.Popen(inside(A, "tcpdump", "-i", "va", "-Q", "out", "-w", path, "-U", "-s", "0",
                                   "-B", "65536", "--immediate-mode"),
                            stderr=subprocess.PIPE)
    try:
        wait_for("capture", lambda: os.path.exists(path) and os.path.getsize(path) >= 24)
        with Servers(directory) as servers:
            what(directory, servers)
            size = -1
            while size != os.path.getsize(path):  # until nothing is added any more
                size = os.path.getsize(path)
                time.sleep(0.3)
    finally:
        dump.terminate()
        dump.wait()
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


def with_payload(packets, protocol, least=9):
    return [i for i, (_, d) in enumerate(packets)
            if layout(d) and layout(d)[0] == protocol and layout(d)[3] - layout(d)[2] >= least]


def changed_byte(packets, protocol):
    out = copy(packets)
    hits = with_payload(out, protocol)
    data = out[hits[len(hits) // 2]][1]
    data[layout(data)[3] - 3] ^= 1
    return out


def without_one(packets):
    out = copy(packets)
    hits = with_payload(out, 6, 300)
    del out[hits[len(hits) // 2]]
    return out


def replay(tool, *argv):
    p = subprocess.run((tool, "--json") + argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return p.returncode, json.loads(p.stdout) if p.returncode < 2 else p.stderr


def check(ok, what):
    print("ok" if ok else "FAILED", "-", what, flush=True)
    return ok


def run_cases(tool, directory, original, kind, expected):
    header, packets = load(original)
    path = os.path.join(directory, "copy.pcap")

    def case(name, changed, status, *options):
        store(path, header, changed)
        code, result = replay(tool, original, path, *options)
        good = code == status and isinstance(result, dict) and \
            result["released"] == result["primary_frames"] == len(packets) and \
            (status == 0) == (not result["divergences"])
        return check(good, "%s, %s: exit %d, expected %d%s" %
                     (kind, name, code, status, "" if good else ": %.2000s" % result))

    protocols = {layout(d)[0] for _, d in packets if layout(d)}
    oks = [check(expected <= protocols, "%s: %d packets recorded, protocols %s" % (kind, len(packets), protocols)),
           case("itself", packets, 0),
           case("itself, numbers exact", packets, 0, "--no-seq-rewrite"),
           case("delayed and reordered", delayed(packets), 0),
           case("other initial numbers", other_numbers(packets), 0),
           case("other initial numbers, exact", other_numbers(packets), 1, "--no-seq-rewrite"),
           case("cut differently", resegmented(packets), 0),
           case("a segment missing", without_one(packets), 1)]
    oks += [case("a byte of protocol %d changed" % protocol, changed_byte(packets, protocol), 1)
            for protocol in sorted(expected)]
    return all(oks)


def truncated(tool, directory, original):
    """Bad input says which file, which packet and what is wrong."""
    _, packets = load(original)
    path = os.path.join(directory, "copy.pcap")
    with open(path, "wb") as f, open(original, "rb") as whole:
        f.write(whole.read()[:-7])
    code, message = replay(tool, original, path)
    return check(code == 2 and "copy.pcap: packet %d" % len(packets) in message,
                 "truncated file: exit %d, %r" % (code, message))


# What is recorded, and the protocols that must be in it with a payload that can be changed.
KINDS = ((web, {1, 6, 17}), (ssh, {6}), (iperf3, {6, 17}), (dns, {6, 17}))
TOOLS = ("ip", "tcpdump", "curl", "ping", "ssh", "ssh-keygen", "dropbear", "dropbearkey", "iperf3", "dnsmasq", "dig")


def main():
    tool = os.path.abspath(sys.argv[1])
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [needed for needed in TOOLS if not shutil.which(needed)]
    if missing:
        sys.exit("FAILED - missing programs: %s; deploy/install-deps --test installs them" % " ".join(missing))
    if os.geteuid() != 0:
        skip("network namespaces need root")
    try:
        lab_up()
    except subprocess.CalledProcessError as e:
        lab_down()
        skip("no network namespaces: %s" % e.stderr.decode().strip())
    good = True
    with tempfile.TemporaryDirectory(prefix="colo-captures-") as directory:
        os.chmod(directory, 0o755)  # tcpdump gives up root
        try:
            originals = [(record(directory, what), what, expected) for what, expected in KINDS]
        finally:
            lab_down()
        for original, what, expected in originals:
            good &= run_cases(tool, directory, original, what.__name__, expected)
        good &= truncated(tool, directory, originals[0][0])
    sys.exit(0 if good else 1)


main()
