#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# demo.sh - the main job, once, from a bare machine: a protected guest, a download, a killed primary.
#
# Builds colod, brings two hosts and a client up as network namespaces, starts a download from the guest, which writes
# to its disk meanwhile, kills the primary's QEMU in the middle and checks that the client got every byte and that
# nothing is missing on the disk. Nothing is left running.

set -euo pipefail
export LC_ALL=C
PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export COLOD_LAB_ID="${COLOD_LAB_ID:-demo}"
lab=tests/lab/lab
build=build/release
rate=12    # MiB/s at most, so that the download is under way for some seconds
kill_at=24 # MiB of 64 that have arrived when the primary dies
disk_mib=256
steps=7
step=0
work=

usage()
{
    cat <<'USAGE'
usage: deploy/demo.sh [--keep]

Shows a failover from a bare Debian 12 or 13, as root. Takes a few minutes the first time.

  --keep   leave the lab up at the end (remove it with COLOD_LAB_ID=demo tests/lab/lab down)
USAGE
}

say()
{
    printf 'demo: %s\n' "$*"
}

die()
{
    printf 'demo: error: %s\n' "$*" >&2
    exit 1
}

next()
{
    step=$((step + 1))
    printf '\ndemo: step %d of %d: %s\n' "$step" "$steps" "$*"
    step_start=$SECONDS
}

finished()
{
    say "done in $((SECONDS - step_start)) s"
}

cleanup()
{
    local status=$?

    if [[ -n "$work" ]]; then
        if ((status != 0)) && [[ -s "$work/log" ]]; then
            printf 'demo: the end of what was said:\n' >&2
            tail -n 30 "$work/log" >&2
        fi
        rm -rf "$work"
    fi
    [[ "$keep" == yes && $status == 0 ]] || "$lab" down || true
    exit "$status"
}

# quietly WHAT COMMAND...: its output is shown only if it fails, a dot each few seconds before.
quietly()
{
    local what="$1" pid

    shift
    : >"$work/log"
    "$@" >"$work/log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        printf '.'
        sleep 2
    done
    printf '\n'
    wait "$pid" || die "$what failed"
    : >"$work/log"
}

build_all()
{
    cmake --preset release && cmake --build --preset release -j "$(nproc)" --target colod colo \
        colo_forward_plugin colo_target_plugin
}

keep=no
case "${1:-}" in
'') ;;
--keep) keep=yes ;;
-h | --help)
    usage
    exit 0
    ;;
*)
    usage >&2
    exit 2
    ;;
esac
((EUID == 0)) || die 'network namespaces and packages need root: run it as root'

work="$(mktemp -d)"
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

next 'what building needs, and the tools of the lab'
deploy/install-deps
finished

next 'building colod (release)'
quietly 'the build' build_all
finished

next 'QEMU and guest of the lab'
qemu="$(tests/lab/qemu-root)"
guest="$(tests/lab/guest-image)"
say "QEMU:  $qemu"
say "guest: $guest"
finished

next 'self-test: can this QEMU do COLO?'
"$build/colod/colo" selftest --qemu "$qemu" --accel tcg || die 'the self-test says no (see above)'
finished

next 'two hosts, a client, a protected guest with a disk'
"$lab" down
"$lab" up --disk "$disk_mib" --build "$PWD/$build" || die 'the guest did not become protected'
finished

next "a download of 64 MiB, and SIGKILL for the primary's QEMU in the middle of it"
/usr/bin/python3 tests/lab/demo-client.py --rate "$rate" --kill-at "$kill_at" ||
    die 'the client did not get, or find, what it must'
finished

next 'protected again, and down'
"$lab" wait b '.state == "protected"' 60 || die 'the pair did not protect itself again'
"$lab" colo b status
"$lab" colo b verify || die 'the disks of both hosts differ'
[[ "$keep" == yes ]] || "$lab" down
finished
say "all is well: the client never noticed more than a pause (in all $SECONDS s)"
