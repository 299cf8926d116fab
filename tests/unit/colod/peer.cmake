# SPDX-License-Identifier: LGPL-2.1-or-later
colo_unit_test(test-peer-wire colod_peer)
colo_unit_test(test-peer-channel colod_peer)
colo_unit_test(test-peer-hello colod_peer)

foreach(name test-peer-link test-peer-link-sec test-frames-stream)
    colo_unit_test(${name} colod_peer)
    target_sources(${name} PRIVATE test-peer-world.c)
    target_compile_definitions(${name} PRIVATE COLO_PKI="${PROJECT_SOURCE_DIR}/deploy/colo-pki")
    set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 300)
endforeach()

target_link_libraries(test-frames-stream PRIVATE colod_frames)

# Once more with a TLS library that would take older versions: then our own check must refuse them.
add_test(NAME test-peer-link-sec-any-tls COMMAND test-peer-link-sec)
get_test_property(test-peer-link-sec ENVIRONMENT environment)
set_tests_properties(test-peer-link-sec-any-tls PROPERTIES TIMEOUT 300 LABELS unit
    SKIP_RETURN_CODE 77 ENVIRONMENT "${environment};G_TLS_GNUTLS_PRIORITY=NORMAL")
