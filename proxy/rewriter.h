/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter.h - translates the numbers of the secondary's TCP connections to those of the primary */
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef struct Rewriter Rewriter;

typedef struct RewriterConfig {
    uint32_t connections_max;
    uint64_t hash_key[2];
} RewriterConfig;

int rewriter_new(const RewriterConfig *config, Rewriter **ret_rewriter);
void rewriter_free(Rewriter *rewriter);
/* @frame: 10-byte virtio_net_hdr and Ethernet frame, changed in place. */
void rewriter_egress(Rewriter *rewriter, uint8_t *frame, size_t len, int64_t now_ns);
void rewriter_ingress(Rewriter *rewriter, uint8_t *frame, size_t len, int64_t now_ns);
void rewriter_commit(Rewriter *rewriter);
void rewriter_takeover(Rewriter *rewriter);
