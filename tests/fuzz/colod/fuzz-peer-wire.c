/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuzz-peer-wire.c - header, hello, refusal and certificate parsers of the peer link */
/*
 * Input: one byte that selects the parser, then what the parser is given. Whatever is accepted must
 * hold what its header file promises.
 */
#include "peer-hello.h"
#include "peer-tls.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
fuzz_header(View input)
{
    const uint8_t *bytes;
    uint8_t again[PEER_HEADER_BYTES];
    PeerHeader header;

    if (!view_take(&input, PEER_HEADER_BYTES, &bytes))
        return;
    for (int kind = 0; kind < PEER_N_CHANNELS; kind++) {
        g_autoptr(GError) error = NULL;

        if (!peer_header_decode(bytes, (PeerChannelKind)kind, &header, &error)) {
            g_assert(error->domain == PEER_ERROR);
            continue;
        }
        g_assert(header.length <= PEER_DATA_MAX_BYTES);
        peer_header_encode(again, header.type, header.length);
        g_assert(memcmp(again, bytes, sizeof(again)) == 0);
    }
}

static void
fuzz_hello(View input)
{
    static const PeerLinkConfig config = {
        .vm_name = "vm1", .vm_uuid = "4ab1d5e2-0c5f-4e0f-9d49-5a2b8d3f7c11", .peer_host = "alpha"};
    g_auto(PeerHello) hello = {0}, again = {0};
    g_autoptr(GError) error = NULL;

    if (!peer_hello_parse(input, &hello, &error)) {
        g_assert(error->domain == PEER_ERROR && !hello.vm);
        return;
    }
    g_autofree char *json = peer_hello_format(&hello);
    const char *code = peer_hello_judge(&hello, &config, &error);

    g_assert(!code == !error);
    g_assert(peer_hello_parse(view_of(json, strlen(json)), &again, NULL));
    g_assert(again.session == hello.session && again.channel == hello.channel);
    g_assert(strcmp(again.info.host, hello.info.host) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    View input = view_of(data, size);
    uint8_t which;

    if (!view_get_u8(&input, &which))
        return 0;
    switch (which % 4) {
    case 0:
        fuzz_header(input);
        break;
    case 1:
        fuzz_hello(input);
        break;
    case 2:
        g_error_free(peer_refused_parse(input));
        break;
    case 3:
        (void)peer_tls_certificate_allows(input, PEER_TLS_PURPOSE_CLIENT);
        break;
    }
    return 0;
}
