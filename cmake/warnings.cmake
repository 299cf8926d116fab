# SPDX-License-Identifier: LGPL-2.1-or-later
# One set of warnings for all rooms; colo_data_plane() adds the stricter set of the packet path.
add_compile_options(-Wall -Wextra -Wshadow -Wswitch-enum -Wvla -Wmissing-prototypes -Wformat=2
    -Wstrict-prototypes -Wpointer-arith -Wundef -fno-strict-aliasing -fno-common)
if(CMAKE_C_COMPILER_ID MATCHES Clang)
    # clang takes a variable that lives for its cleanup (g_autoptr) for unused; gcc's check stands.
    add_compile_options(-Wno-unused-variable)
endif()
if(COLO_WERROR)
    add_compile_options(-Werror)
endif()
if(COLO_SANITIZE)
    add_compile_options(-fsanitize=${COLO_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
    add_link_options(-fsanitize=${COLO_SANITIZE})
endif()
if(COLO_FUZZ)
    add_compile_options(-fsanitize=fuzzer-no-link)
endif()

function(colo_data_plane target)
    target_compile_options(${target} PRIVATE -Wconversion)
endfunction()
