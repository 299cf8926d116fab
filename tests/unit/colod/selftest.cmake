# SPDX-License-Identifier: LGPL-2.1-or-later
if(TARGET colod_selftest)
    colo_unit_test(test-selftest colod_selftest)
    target_compile_definitions(test-selftest PRIVATE
        QEMU_ROOT="${PROJECT_SOURCE_DIR}/tests/lab/qemu-root"
        FAKE_QEMU="${CMAKE_CURRENT_SOURCE_DIR}/test-selftest-fake-qemu.py")
    # The first run on a machine may have to build the private QEMU.
    set_tests_properties(test-selftest PROPERTIES TIMEOUT 400 COST 100) # the longest: first
endif()
