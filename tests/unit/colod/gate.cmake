# SPDX-License-Identifier: LGPL-2.1-or-later
foreach(name test-colo-forward test-colo-return test-gate-primary test-gate-secondary test-gate-pair
        test-gate-early)
    colo_unit_test(${name} colod_gate)
    target_compile_definitions(${name} PRIVATE TEST_DATA_DIR="${CMAKE_CURRENT_SOURCE_DIR}")
endforeach()
foreach(name test-gate-primary test-gate-secondary test-gate-pair test-gate-early)
    target_sources(${name} PRIVATE test-gate-bench.c)
endforeach()
