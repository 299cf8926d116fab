# SPDX-License-Identifier: LGPL-2.1-or-later
# The self-test of a QEMU build; used by colod before it protects a VM, and by `colo selftest`.
add_library(colod_selftest STATIC
    selftest.c selftest.h
    selftest-cache.c selftest-cache.h
    selftest-cli.c
    selftest-phases.c selftest-private.h
    selftest-vm.c selftest-vm.h)
target_include_directories(colod_selftest PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(colod_selftest PUBLIC colo_common PkgConfig::GLIB
    PRIVATE colo_qmp PkgConfig::JSONC)
