#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# run.sh - everything that must be right: builds, unit tests, sanitizers, fuzzers, analysers, end-to-end tests.
#
# One line for each stage; what a stage printed is in build/test-logs and, if it failed, its end is shown.
# A stage that fails does not keep the others from running. A tool that is missing is a failure. Tests that
# fail are run once more; those that pass then are named as flaky in the summary: each is a fault to be found.

set -uo pipefail
export LC_ALL=C
PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

all_stages=(deps dev format shell cppcheck chaoslib lab block e2e chaos asan tsan fuzz tidy)
logs=build/test-logs
jobs="$(nproc)"
unit_jobs=$((jobs + 1)) # the first and longest of the unit tests, test-selftest, does nothing but wait for deadlines
fuzz_seconds="${COLOD_FUZZ_SECONDS:-5}"
sources=(common qmp compare proxy blockrep colod)
failed=()
flaky='' # tests that failed and then passed, to be shown
passed=0
idle_pid='' # what is built, analysed and fuzzed beside the tests that wait most of the time

usage()
{
    cat <<'USAGE'
usage: tests/run.sh [STAGE...]

Runs all stages, or only those named:

  deps      install what building and testing needs
  dev       build; unit tests and fuzz seeds
  format    clang-format
  shell     shellcheck
  cppcheck  cppcheck
  chaoslib  the pure parts of the chaos runner: language, model, shrinker
  lab       QEMU and guest of the lab; the tests of its oracles
  block     disks of both hosts with real NBD clients
  e2e       end-to-end tests
  chaos     scenarios written by hand, and random minutes (COLOD_CHAOS_MINUTES, COLOD_CHAOS_SEED)
  asan      unit tests and fuzz seeds under AddressSanitizer and UBSan
  tsan      unit tests with threads under ThreadSanitizer
  fuzz      each fuzzer for a few seconds (COLOD_FUZZ_SECONDS)
  tidy      clang-tidy

What can be built, analysed and fuzzed meanwhile is so beside block, e2e and chaos, at idle priority.
USAGE
}

c_files()
{
    git ls-files -- '*.c' '*.h'
}

# Files that are shell scripts by their first line.
shell_scripts()
{
    local file

    git ls-files | while read -r file; do
        if [[ -f "$file" ]] && head -c 64 "$file" 2>/dev/null | head -n 1 |
            grep -qaE '^#!.*/(env )?(ba)?sh( |$)'; then
            printf '%s\n' "$file"
        fi
    done
}

build_preset()
{
    # A folder configured by an older checkout may know files that are gone.
    cmake --preset "$1" -DCMAKE_EXPORT_COMPILE_COMMANDS=ON && cmake --build --preset "$1" -j "$jobs"
}

# run_ctest PRESET AT_ONCE OPTION...: tests that fail are run once more, alone; those that pass then are named.
run_ctest()
{
    local preset="$1" at_once="$2" failed_list="build/$1/Testing/Temporary/LastTestsFailed.log" first

    shift 2
    ctest --preset "$preset" -j "$at_once" --no-tests=error "$@" && return 0
    first="$(sed 's/^[0-9]*:/FAILED /' "$failed_list" 2>/dev/null)"
    printf '\nFLAKY if it passes now:\n'
    ctest --preset "$preset" --no-tests=error --rerun-failed || return 1
    flaky="$first"
}

stage_deps()
{
    deploy/install-deps --build --test
}

stage_dev()
{
    build_preset dev && run_ctest dev "$unit_jobs"
}

stage_format()
{
    c_files | xargs clang-format --dry-run -Werror
}

stage_shell()
{
    shell_scripts | xargs shellcheck
}

build_asan()
{
    build_preset asan
}

stage_asan()
{
    build_asan && run_ctest asan "$unit_jobs"
}

# The daemon's main loop is one thread; threads are the proxy's, the arbiter's and the disk's.
build_tsan()
{
    cmake --preset tsan &&
        cmake --build --preset tsan -j "$jobs" --target test-proxy test-proxy-life test-proxy-queues test-proxy-stream \
            test-proxy-parts test-hold-queue test-arbiter \
            test-front test-range-lock test-layers test-crash test-target test-disk-control test-target-plugin test-forward \
            test-lockstep test-lockstep-bounds test-lockstep-digests test-lockstep-life test-lockstep-loss test-lockstep-tcp \
            test-frames-stream
}

stage_tsan()
{
    build_tsan || return 1
    run_ctest tsan "$jobs" \
        -R 'proxy|lockstep|frames-stream|arbiter|hold-queue|test-front|range-lock|test-layers$|test-crash|test-target$|target-plugin|disk-control|test-forward$'
}

# Only the fuzzers: everything else is built three times already.
build_fuzz()
{
    cmake --preset fuzz && cmake --build --preset fuzz -j "$jobs" --target fuzzers
}

# A crash leaves its input in build/fuzz/found.
run_fuzzer()
{
    local program="$1" name work

    name="$(basename "$program")"
    work="build/fuzz/corpus/$name"
    mkdir -p "$work" build/fuzz/found
    printf '%s\n' "--- $name"
    timeout "$((fuzz_seconds * 4 + 60))" "$program" -max_total_time="$fuzz_seconds" -timeout=25 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="build/fuzz/found/$name-" "$work" \
        "$(dirname "${program/#build\/fuzz\//}")/$name.corpus"
}

run_fuzzers()
{
    local program status=0 failures=build/fuzz/failures

    build_fuzz || return 1
    mapfile -t programs < <(find build/fuzz/tests/fuzz -name 'fuzz-*' -type f -perm -u+x | sort)
    ((${#programs[@]} > 0)) || return 1
    export -f run_fuzzer
    rm -rf "$failures" && mkdir -p "$failures" || return 1
    export fuzz_seconds failures
    # One core each; the output of one is printed in one piece.
    # shellcheck disable=SC2016  # for the inner shell
    printf '%s\n' "${programs[@]}" |
        xargs -P "$jobs" -I{} bash -c 'out="$(run_fuzzer {} 2>&1)" || { s=$?; printf "%s\n" "$out" >"$failures/$(basename {})"; }
            printf "%s\n" "$out"; exit ${s:-0}' || status=1
    for program in "$failures"/*; do
        # The end of the log is what is shown: what was found, not what the last fuzzer said.
        [[ ! -e "$program" ]] || grep -v '^#[0-9]' "$program" | tail -n 35
    done
    return $status
}

# What ran beside the other tests is not run again.
stage_fuzz()
{
    take_idle fuzzers || run_fuzzers
}

run_tidy()
{
    local program

    [[ -e build/dev/compile_commands.json ]] || build_preset dev || return 1
    program="$(command -v clang-tidy)" || return 1
    git ls-files -- "${sources[@]/%//*.c}" |
        xargs -P "$jobs" -n 4 timeout 600 "$program" -p build/dev --quiet --extra-arg=-Wno-unknown-warning-option
}

stage_tidy()
{
    take_idle tidy || run_tidy
}

# take_idle NAME: ends the stage with what run_idle came to; false if it did not do it.
take_idle()
{
    [[ -e "$logs/idle-$1.status" ]] || return 1
    cat "$logs/idle-$1.log"
    idle_status="$(<"$logs/idle-$1.status")"
}

# Lets what else runs have the cores at once whenever it wants them. A build that fails here does so again in its stage.
run_idle()
{
    local name

    chrt --idle --pid 0 $BASHPID >/dev/null
    for name in asan tsan fuzz; do
        [[ " ${stages[*]} " != *" $name "* ]] || "build_$name" >"$logs/idle-$name.log" 2>&1
    done
    if [[ " ${stages[*]} " == *" tidy "* ]]; then
        run_tidy >"$logs/idle-tidy.log" 2>&1
        echo $? >"$logs/idle-tidy.status"
    fi
    if [[ " ${stages[*]} " == *" fuzz "* ]]; then
        # Some seconds of the clock are a third as many of a core.
        fuzz_seconds=$((3 * fuzz_seconds)) run_fuzzers >"$logs/idle-fuzzers.log" 2>&1
        echo $? >"$logs/idle-fuzzers.status"
    fi
}

# Beside the stages that wait for guests most of the time; before the others it must have ended.
start_or_join_idle()
{
    case "$1" in
    lab | block | e2e | chaos)
        [[ -z "$idle_pid" ]] || return
        run_idle &
        idle_pid=$!
        ;;
    asan | tsan | fuzz | tidy)
        [[ -z "$idle_pid" ]] || wait "$idle_pid"
        ;;
    esac
}

stage_cppcheck()
{
    git ls-files -- "${sources[@]/%//*.c}" |
        xargs timeout 600 cppcheck -j "$jobs" --quiet --error-exitcode=1 --std=c11 --inline-suppr \
            --enable=warning,performance,portability --library=gtk --library=posix \
            --suppressions-list=tests/cppcheck.supp -I common -I qmp -I proxy -I blockrep -I colod \
            '-DG_GNUC_PRINTF(a,b)=' '-DG_DEFINE_QUARK(name,function)=' '-DG_DEFINE_EXTENDED_ERROR(name,function)='
}

stage_chaoslib()
{
    timeout 120 /usr/bin/python3 -m pytest -o cache_dir=build/pytest-cache -q tests/chaos
}

# And what judges the guest, by guests that lie.
stage_lab()
{
    tests/lab/qemu-root && tests/lab/guest-image &&
        timeout 300 /usr/bin/python3 -m pytest -o cache_dir=build/pytest-cache -q tests/lab
}

# After the lab: qemu-io is that of its QEMU.
stage_block()
{
    [[ -e build/dev/blockrep/nbdkit-colo-forward-plugin.so && -e build/dev/tests/block/disk-tool ]] || build_preset dev || return 1
    timeout 900 /usr/bin/python3 -m pytest -o cache_dir=build/pytest-cache -q --durations=5 -n 2 tests/block
}

# Two labs at a time (tests/e2e/conftest.py): their tests wait for copies and deadlines most of their time.
stage_e2e()
{
    local pytest=(timeout 3600 /usr/bin/python3 -m pytest -o cache_dir=build/pytest-cache-e2e -q --durations=15 --dist loadgroup)
    local first again

    [[ -x build/dev/colod/colod ]] || build_preset dev || return 1
    "${pytest[@]}" -n 2 tests/e2e && return 0
    # Once more, alone: what passes now depends on timing, which is a fault to be found, and is shown as such. By their
    # names without the lab's, which pytest's own --last-failed does not find again.
    first="$(grep -E '^(FAILED|ERROR) ' "$logs/e2e.log" | sort -u)"
    mapfile -t again < <(sed -E 's/^(FAILED|ERROR) (tests\/.*)@lab[0-9]+( - .*)?$/\2/' <<<"$first" | sort -u)
    # What is no test's name (a file that does not load, a run that broke off) is not forgiven.
    [[ " ${again[*]}" != *" FAILED "* && " ${again[*]}" != *" ERROR "* && -n "${again[*]}" ]] || return 1
    printf '\nFLAKY if it passes now:\n'
    if ! "${pytest[@]}" -n 1 "${again[@]}"; then
        printf 'At first:\n%s\n' "$first"
        return 1
    fi
    flaky="$first"
}

# One seed, so that a tree is judged by the same faults each time; more of them are tried by hand (docs/RESULTS.md).
# In two labs at once, as the end-to-end tests: one takes the random minutes, and then so many that both have as much to do.
stage_chaos()
{
    local status=0 second scenarios later others='/(steps-.*|buffered|disk-full).scenario$'

    [[ -x build/dev/colod/colod ]] || build_preset dev || return 1
    mapfile -t scenarios < <(git ls-files -- 'tests/chaos/scenarios/*.scenario' | grep -vE "$others")
    mapfile -t later < <(git ls-files -- 'tests/chaos/scenarios/*.scenario' | grep -E "$others")
    {
        COLOD_LAB_ID=chaosr timeout 900 tests/chaos/chaos --random --seed "${COLOD_CHAOS_SEED:-1}" --minutes "${COLOD_CHAOS_MINUTES:-5}" &&
            COLOD_LAB_ID=chaosr timeout 900 tests/chaos/chaos "${later[@]}"
    } >"$logs/chaos-random.log" 2>&1 &
    second=$!
    COLOD_LAB_ID=chaos timeout 1200 tests/chaos/chaos "${scenarios[@]}" || status=1
    wait "$second" || status=1
    cat "$logs/chaos-random.log"
    return $status
}

# Seconds of its cores that a virtual machine did not get from its host, since its start.
stolen_seconds()
{
    local steal

    read -r _ _ _ _ _ _ _ _ steal _ </proc/stat
    echo $((steal / $(getconf CLK_TCK)))
}

# tell_slow STAGE SECONDS STOLEN: what a stage that took long spent its time on.
tell_slow()
{
    (($3 < 10 || $3 * 10 <= $2)) || printf '    the host took %d s of the cores away\n' "$3"
    (($2 <= 600)) || grep -E '^[0-9.]+s (setup|call|teardown) ' "$logs/$1.log" | head -n 8 | sed 's/^/    /'
}

run_stage()
{
    local stage="$1" start=$SECONDS stolen status

    stolen="$(stolen_seconds)"

    printf '%-9s ' "$stage"
    start_or_join_idle "$stage"
    idle_status=0
    "stage_$stage" >"$logs/$stage.log" 2>&1 </dev/null
    status=$?
    ((status != 0)) || status=$idle_status
    if ((status == 0)); then
        printf 'ok      %4d s\n' $((SECONDS - start))
        ((passed++))
        if [[ -n "$flaky" ]]; then
            printf '%s\n' "$flaky" | sed 's/^/    FLAKY, passed at the second try: /'
            flaky=''
        fi
        tell_slow "$stage" $((SECONDS - start)) $(($(stolen_seconds) - stolen))
        return
    fi
    printf 'FAILED  %4d s, the end of %s:\n' $((SECONDS - start)) "$logs/$stage.log"
    tail -n 40 "$logs/$stage.log" | sed 's/^/    /'
    tell_slow "$stage" $((SECONDS - start)) $(($(stolen_seconds) - stolen))
    failed+=("$stage")
}

stages=()
for argument in "$@"; do
    case "$argument" in
    -h | --help)
        usage
        exit 0
        ;;
    *)
        if [[ " ${all_stages[*]} " != *" $argument "* ]]; then
            usage >&2
            exit 2
        fi
        stages+=("$argument")
        ;;
    esac
done
((${#stages[@]} > 0)) || stages=("${all_stages[@]}")

mkdir -p "$logs"
rm -f "$logs"/idle-*
for stage in "${stages[@]}"; do
    run_stage "$stage"
done

if ((${#failed[@]} > 0)); then
    printf 'run.sh: FAILED: %s (%d stages passed) in %d s\n' "${failed[*]}" "$passed" "$SECONDS"
    exit 1
fi
printf 'run.sh: all %d stages passed in %d s\n' "$passed" "$SECONDS"
