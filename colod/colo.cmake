# SPDX-License-Identifier: LGPL-2.1-or-later
# The CLI. It links nothing of the daemon but the self-test, which runs without it.
add_executable(colo colo.c colo-client.c colo-client.h colo-commands.c colo-commands.h
    colo-status.c colo-status.h)
target_link_libraries(colo PRIVATE colo_common colod_selftest PkgConfig::JSONC)
install(TARGETS colo RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
