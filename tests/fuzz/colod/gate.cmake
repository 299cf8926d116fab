# SPDX-License-Identifier: LGPL-2.1-or-later
foreach(name fuzz-colo-forward fuzz-colo-return fuzz-gate)
    colo_fuzz_target(${name} colod_gate)
endforeach()
target_sources(fuzz-gate PRIVATE fuzz-gate-harness.c)
target_include_directories(fuzz-gate PRIVATE ${PROJECT_SOURCE_DIR}/tests/unit/colod)
