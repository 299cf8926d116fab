#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""record-commands.py - trims a QEMU's query-qmp-schema to what fake-qmp checks.

Start a QEMU with `-M none -display none -qmp unix:SOCKET,server=on,wait=off`, then

    record-commands.py SOCKET > qemu-11.1-commands.json

Per command: may it run out of band, and its arguments (true = mandatory). A union's variants are
merged, as optional, into one set. "open" marks commands that take arguments beyond the schema.
"""
import json
import socket
import sys

# 'gen': false in QAPI: the schema names some members, QEMU passes all others to the device.
OPEN_COMMANDS = {"device_add"}


def ask(stream, command):
    stream.write(json.dumps({"execute": command}) + "\n")
    stream.flush()
    while True:
        message = json.loads(stream.readline())
        if "return" in message:
            return message["return"]
        if "error" in message:
            sys.exit(f"{command}: {message['error']['desc']}")


def arguments(types, name):
    found = {}
    entry = types[name]
    for member in entry.get("members", []):
        found[member["name"]] = "default" not in member
    for variant in entry.get("variants", []):
        for member in arguments(types, variant["type"]):
            found.setdefault(member, False)
    return found


def main():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(sys.argv[1])
        stream = sock.makefile("rw")
        version = json.loads(stream.readline())["QMP"]["version"]["qemu"]
        ask(stream, "qmp_capabilities")
        schema = ask(stream, "query-qmp-schema")
    types = {entry["name"]: entry for entry in schema}
    commands = {}
    for entry in schema:
        if entry["meta-type"] != "command":
            continue
        command = {"args": arguments(types, entry["arg-type"])}
        if entry.get("allow-oob"):
            command["oob"] = True
        if entry["name"] in OPEN_COMMANDS:
            command["open"] = True
        commands[entry["name"]] = command
    events = sorted(e["name"] for e in schema if e["meta-type"] == "event")
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(commands[name], sort_keys=True)}" for name in sorted(commands)
    )
    print(
        '{"qemu": "%d.%d.%d",\n "commands": {\n%s\n },\n "events": %s}'
        % (version["major"], version["minor"], version["micro"], lines, json.dumps(events))
    )


if __name__ == "__main__":
    main()
