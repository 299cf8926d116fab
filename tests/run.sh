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

all_stages=(deps dev format shell asan tsan fuzz tidy cppcheck chaoslib lab block e2e chaos)
logs=build/test-logs
jobs="$(nproc)"
fuzz_seconds="${COLOD_FUZZ_SECONDS:-5}"
sources=(common qmp compare proxy blockrep colod)
failed=()
flaky='' # tests that failed and then passed, to be shown
passed=0

usage()
{
    cat <<'USAGE'
usage: tests/run.sh [STAGE...]

Runs all stages, or only those named:

  deps      install what building and testing needs
  dev       build; unit tests and fuzz seeds
  format    clang-format
  shell     shellcheck
  asan      unit tests and fuzz seeds under AddressSanitizer and UBSan
  tsan      unit tests with threads under ThreadSanitizer
  fuzz      each fuzzer for a few seconds (COLOD_FUZZ_SECONDS)
  tidy      clang-tidy
  cppcheck  cppcheck
  chaoslib  the pure parts of the chaos runner: language, model, shrinker
  lab       QEMU and guest of the lab; the tests of its oracles
  block     disks of both hosts with real NBD clients
  e2e       end-to-end tests
  chaos     scenarios written by hand, and random minutes (COLOD_CHAOS_MINUTES, COLOD_CHAOS_SEED)
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

# run_ctest PRESET OPTION...: tests that fail are run once more, alone; those that pass then are named.
run_ctest()
{
    local preset="$1" failed_list="build/$1/Testing/Temporary/LastTestsFailed.log" first

    shift
    ctest --preset "$preset" -j "$jobs" --no-tests=error "$@" && return 0
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
    build_preset dev && run_ctest dev
}

stage_format()
{
    c_files | xargs clang-format --dry-run -Werror
}

stage_shell()
{
    shell_scripts | xargs shellcheck
}

stage_asan()
{
    build_preset asan && run_ctest asan
}

# The daemon's main loop is one thread; threads are the proxy's, the arbiter's and the disk's.
stage_tsan()
{
    cmake --preset tsan || return 1
    cmake --build --preset tsan -j "$jobs" --target test-proxy test-proxy-queues test-proxy-parts test-hold-queue test-arbiter test-front \
        test-range-lock test-layers test-crash test-target test-disk-control test-target-plugin test-forward \
        test-lockstep test-lockstep-bounds test-lockstep-digests test-lockstep-life test-lockstep-loss test-lockstep-tcp \
        test-frames-stream || return 1
    run_ctest tsan \
        -R 'proxy|lockstep|frames-stream|arbiter|hold-queue|test-front|range-lock|test-layers$|test-crash|test-target$|target-plugin|disk-control|test-forward$'
}

# A crash leaves its input in build/fuzz/found.
run_fuzzer()
{
    local program="$1" name work

    name="$(basename "$program")"
    work="build/fuzz/corpus/$name"
    mkdir -p "$work" build/fuzz/found
    printf '%s\n' "--- $name"
    timeout "$((fuzz_seconds * 4 + 60))" "$program" -max_total_time="$fuzz_seconds" -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="build/fuzz/found/$name-" "$work" \
        "$(dirname "${program/#build\/fuzz\//}")/$name.corpus"
}

stage_fuzz()
{
    local program status=0 failures=build/fuzz/failures

    # Only the fuzzers: everything else is built three times already.
    cmake --preset fuzz || return 1
    cmake --build --preset fuzz -j "$jobs" --target fuzzers || return 1
    mapfile -t programs < <(find build/fuzz/tests/fuzz -name 'fuzz-*' -type f -perm -u+x | sort)
    ((${#programs[@]} > 0)) || return 1
    export -f run_fuzzer
    rm -rf "$failures" && mkdir -p "$failures" || return 1
    export fuzz_seconds failures
    # One core each; the output of one is printed in one piece.
    # shellcheck disable=SC2016  # for the inner shell
    printf '%s\n' "${programs[@]}" |
        xargs -P "$jobs" -I{} bash -c 'out="$(run_fuzzer {} 2>&1)" || { s=$?; touch "$failures/$(basename {})"; }
            printf "%s\n" "$out"; exit ${s:-0}' || status=1
    for program in "$failures"/*; do
        # The end of the log is what is shown: what was found, not what the last fuzzer said.
        [[ ! -e "$program" ]] || sed -n "/^--- $(basename "$program")\$/,/^stat::peak/p" "$logs/fuzz.log" | grep -v '^#[0-9]' | tail -n 35
    done
    return $status
}

stage_tidy()
{
    local program

    [[ -e build/dev/compile_commands.json ]] || build_preset dev || return 1
    program="$(command -v clang-tidy)" || return 1
    git ls-files -- "${sources[@]/%//*.c}" |
        xargs -P "$jobs" -n 4 timeout 300 "$program" -p build/dev --quiet --extra-arg=-Wno-unknown-warning-option
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
    timeout 900 /usr/bin/python3 -m pytest -o cache_dir=build/pytest-cache -q --durations=5 tests/block
}

# run_e2e LAB ARGUMENT...: in a lab of its own, so that two can run at once.
run_e2e()
{
    local lab="$1"

    shift
    COLOD_LAB_ID="$lab" timeout 3600 /usr/bin/python3 -m pytest -o cache_dir="build/pytest-cache-$lab" -q --durations=15 "$@"
}

stage_e2e()
{
    local status=0 disks

    [[ -x build/dev/colod/colod ]] || build_preset dev || return 1
    # Beside the others: the tests of disks wait for copies and deadlines most of their time.
    run_e2e e2ed tests/e2e/test_disk.py >"$logs/e2e-disk.log" 2>&1 &
    disks=$!
    run_e2e e2e --ignore=tests/e2e/test_disk.py tests/e2e || status=1
    wait "$disks" || status=1
    cat "$logs/e2e-disk.log"
    ((status)) || return 0
    # Once more, alone: what passes now depends on timing, which is a fault to be found, and is shown as such.
    printf '\nFLAKY if it passes now:\n'
    status=0
    run_e2e e2ed --last-failed --last-failed-no-failures=none tests/e2e/test_disk.py || status=$?
    ((status == 0 || status == 5)) || return 1 # 5: nothing to run
    status=0
    run_e2e e2e --last-failed --last-failed-no-failures=none --ignore=tests/e2e/test_disk.py tests/e2e || status=$?
    ((status == 0 || status == 5)) || return 1
    flaky="$(grep -E '^(FAILED|ERROR) ' "$logs/e2e.log" | sort -u)"
}

# Both at once, each in a lab of its own. Another seed each day, so that the same tree is tried in other ways; the log says which.
stage_chaos()
{
    local status=0 drawn

    [[ -x build/dev/colod/colod ]] || build_preset dev || return 1
    COLOD_LAB_ID=chaosr timeout 2400 tests/chaos/chaos --random --seed "${COLOD_CHAOS_SEED:-$(date +%Y%m%d)}" \
        --minutes "${COLOD_CHAOS_MINUTES:-5}" >"$logs/chaos-random.log" 2>&1 &
    drawn=$!
    COLOD_LAB_ID=chaos timeout 2400 tests/chaos/chaos tests/chaos/scenarios || status=1
    wait "$drawn" || status=1
    cat "$logs/chaos-random.log"
    return $status
}

run_stage()
{
    local stage="$1" start=$SECONDS status

    printf '%-9s ' "$stage"
    "stage_$stage" >"$logs/$stage.log" 2>&1 </dev/null
    status=$?
    if ((status == 0)); then
        printf 'ok      %4d s\n' $((SECONDS - start))
        ((passed++))
        if [[ -n "$flaky" ]]; then
            printf '%s\n' "$flaky" | sed 's/^/    FLAKY, passed at the second try: /'
            flaky=''
        fi
        return
    fi
    printf 'FAILED  %4d s, the end of %s:\n' $((SECONDS - start)) "$logs/$stage.log"
    tail -n 40 "$logs/$stage.log" | sed 's/^/    /'
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
for stage in "${stages[@]}"; do
    run_stage "$stage"
done

if ((${#failed[@]} > 0)); then
    printf 'run.sh: FAILED: %s (%d stages passed) in %d s\n' "${failed[*]}" "$passed" "$SECONDS"
    exit 1
fi
printf 'run.sh: all %d stages passed in %d s\n' "$passed" "$SECONDS"
