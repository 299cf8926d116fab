# SPDX-License-Identifier: LGPL-2.1-or-later
# Configuration, state file, arbiter, event log, control server and the CLI.
colo_unit_test(test-config colod_host)
target_compile_definitions(test-config PRIVATE
    SAMPLE_FILE="${PROJECT_SOURCE_DIR}/deploy/colod.conf.sample"
    MAN_PAGE="${PROJECT_SOURCE_DIR}/docs/man/colod.conf.5")
colo_unit_test(test-state-file colod_host)
colo_unit_test(test-event-log colod_host)
colo_unit_test(test-loop-watch colod_host)
colo_unit_test(test-control-server colod_host)
colo_unit_test(test-arbiter colod_host)
target_link_options(test-arbiter PRIVATE -Wl,--wrap=link -Wl,--wrap=faccessat)

if(TARGET colo)
    add_executable(cli-server cli-server.c)
    target_link_libraries(cli-server PRIVATE colod_host)
    colo_python_test(test-cli test_cli.py COLO=$<TARGET_FILE:colo> CLI_SERVER=$<TARGET_FILE:cli-server>
        MAN_PAGE=${PROJECT_SOURCE_DIR}/docs/man/colo.1)
endif()

file(GLOB man_pages CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/docs/man/*.[1-8])
add_test(NAME test-man-pages
    COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/test-man-pages.sh ${man_pages})
set_tests_properties(test-man-pages PROPERTIES LABELS unit SKIP_RETURN_CODE 77)

add_test(NAME test-colo-pki
    COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/test-colo-pki.sh ${PROJECT_SOURCE_DIR}/deploy/colo-pki)
set_tests_properties(test-colo-pki PROPERTIES LABELS unit)
