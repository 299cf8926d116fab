/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* rewriter-none.c - a rewriter that changes nothing */
#include "rewriter.h"

#include <stdlib.h>

struct Rewriter {
    int unused;
};

int
rewriter_new(const RewriterConfig *config, Rewriter **ret_rewriter)
{
    (void)config;
    *ret_rewriter = calloc(1, sizeof(**ret_rewriter));
    return 0;
}

void
rewriter_free(Rewriter *rewriter)
{
    free(rewriter);
}

void
rewriter_egress(Rewriter *rewriter, uint8_t *frame, size_t len, int64_t now_ns)
{
    (void)rewriter, (void)frame, (void)len, (void)now_ns;
}

void
rewriter_ingress(Rewriter *rewriter, uint8_t *frame, size_t len, int64_t now_ns)
{
    (void)rewriter, (void)frame, (void)len, (void)now_ns;
}

void
rewriter_commit(Rewriter *rewriter)
{
    (void)rewriter;
}

void
rewriter_takeover(Rewriter *rewriter)
{
    (void)rewriter;
}
