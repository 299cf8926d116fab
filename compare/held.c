/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* held.c - the frames an engine holds: storing, releasing, forgetting */
/*
 * Theory of operation
 *
 * A Held begins on the stack and borrows the caller's bytes. If it has to wait it moves to slab
 * memory, its bytes behind it, and takes its own place on all lists (engine_store()). The bytes of
 * a lent frame stay the caller's until compare_settle(); their room behind it is there all the
 * same. Whatever is stored is on the list of all held frames, in arrival order, but for those of an
 * epoch to come, which wait aside.
 *
 * A frame ends by being released (of the primary) or forgotten, on the stack as well as stored. Who
 * ends it has taken it off its flow's lists before.
 */
#include <string.h>

#include "engine.h"
#include "patch.h"

/* --- the list of held frames --- */

void
engine_seek_age_ack(Compare *e, Held *h)
{
    while (h && (!(h->flags & HELD_PURE_ACK) || h->side == COMPARE_SECONDARY))
        h = h->link[LINK_AGE].next;
    e->age_ack = h;
}

void
engine_age(Compare *e, Held *h)
{
    held_list_append(&e->age, h, LINK_AGE);
    if (!e->age_check)
        e->age_check = h;
    if (!e->part_check)
        e->part_check = h;
    if (!e->age_ack)
        engine_seek_age_ack(e, h);
}

void
engine_unage(Compare *e, Held *h)
{
    if (e->age_check == h)
        e->age_check = h->link[LINK_AGE].next;
    if (e->part_check == h)
        e->part_check = h->link[LINK_AGE].next;
    if (e->age_ack == h)
        engine_seek_age_ack(e, h->link[LINK_AGE].next);
    held_list_remove(&e->age, h, LINK_AGE);
}

static void
replace_in_lists(Held *from, Held *to)
{
    Flow *f = from->flow;

    if (from->flags & HELD_IN_FIFO)
        held_list_replace(&f->fifo, from, to, LINK_FIFO);
    if (from->flags & HELD_IN_BACKLOG)
        held_list_replace(&f->backlog, from, to, LINK_FIFO);
    if (from->flags & HELD_IN_CHAIN)
        held_list_replace(from->side == COMPARE_PRIMARY ? &f->p_chain : &f->s_chain, from, to,
                          LINK_CHAIN);
    if (from->flags & HELD_IN_RST) {
        HeldList list = {.head = f->s_rst};

        held_list_replace(&list, from, to, LINK_CHAIN);
        f->s_rst = list.head;
    }
}

/* There is room for its bytes behind each Held that is stored. */
static void
copy_frame(Held *h)
{
    memcpy(h + 1, h->frame, h->frame_len);
    h->frame = (const uint8_t *)(h + 1);
    h->lent = false;
}

Held *
engine_store(Compare *e, Held *h)
{
    Held *stored = slab_alloc(e->slab, sizeof(*stored) + h->frame_len);

    if (!stored)
        return NULL;
    *stored = *h;
    stored->flags |= HELD_STORED;
    if (h->lent)
        e->n_lent[h->side]++;
    else
        copy_frame(stored);
    replace_in_lists(h, stored);
    engine_age(e, stored);
    e->stats.held_frames[h->side]++;
    e->stats.held_bytes_side[h->side] += h->frame_len;
    return stored;
}

int
engine_store_future(Compare *e, Held *h)
{
    Held *stored = slab_alloc(e->slab, sizeof(*stored) + h->frame_len);

    if (!stored)
        return engine_out_of_memory(e);
    *stored = *h;
    stored->flags |= HELD_STORED;
    copy_frame(stored);
    held_list_append(&e->future, stored, LINK_AGE);
    e->stats.held_frames[h->side]++;
    e->stats.held_bytes_side[h->side] += h->frame_len;
    return 0;
}

void
engine_unlink(Held *h)
{
    Flow *f = h->flow;

    if (h->flags & HELD_IN_FIFO)
        held_list_remove(&f->fifo, h, LINK_FIFO);
    if (h->flags & HELD_IN_BACKLOG)
        held_list_remove(&f->backlog, h, LINK_FIFO);
    if (h->flags & HELD_IN_CHAIN)
        held_list_remove(h->side == COMPARE_PRIMARY ? &f->p_chain : &f->s_chain, h, LINK_CHAIN);
    if (h->flags & HELD_IN_RST) {
        HeldList list = {.head = f->s_rst};

        held_list_remove(&list, h, LINK_CHAIN);
        f->s_rst = list.head;
    }
}

static void
discard(Compare *e, Held *h)
{
    if (!(h->flags & HELD_STORED)) {
        h->flags |= HELD_DONE;
        return;
    }
    dgram_unindex(e, h);
    engine_unage(e, h);
    e->n_lent[h->side] -= h->lent;
    e->stats.held_frames[h->side]--;
    e->stats.held_bytes_side[h->side] -= h->parts.head ? 0 : h->frame_len;
    slab_release(e->slab, h);
}

static void
discard_part(Compare *e, Held *part)
{
    e->stats.held_frames[part->side]--;
    e->stats.held_bytes_side[part->side] -= part->frame_len;
    slab_release(e->slab, part);
}

void
engine_forget(Compare *e, Held *h)
{
    Held *following;

    for (Held *part = h->parts.head; part; part = following) {
        following = part->link[LINK_FIFO].next;
        discard_part(e, part);
    }
    discard(e, h);
}

/* --- releasing --- */

static void
release_frame(Compare *e, const Held *h, const uint8_t *bytes, uint32_t len, CompareWhy why)
{
    CompareRelease release = {.bytes = bytes,
                              .len = len,
                              .vnet_hdr_len = h->vnet_hdr_len,
                              .cookie = h->cookie,
                              .why = why,
                              .held_ns = e->now_ns - h->arrival_ns,
                              .lent = h->lent && bytes == h->frame};

    e->stats.released[why]++;
    e->stats.hold_ns_total += (uint64_t)release.held_ns;
    if (release.held_ns > e->stats.hold_ns_max)
        e->stats.hold_ns_max = release.held_ns;
    e->ops.release(e->opaque, &release);
}

/* What is left of a segment whose first bytes have left. */
static void
release_rest(Compare *e, const Held *h, uint32_t ack, uint16_t window, CompareWhy why)
{
    uint32_t len = patch_part(h, e->scratch, h->cut, h->end, ack, window);

    release_frame(e, h, e->scratch, len, why);
}

void
engine_release(Compare *e, Held *h, CompareWhy why)
{
    Held *following;

    for (Held *part = h->parts.head; part; part = following) {
        following = part->link[LINK_FIFO].next;
        release_frame(e, part, part->frame, part->frame_len, why);
        discard_part(e, part);
    }
    if (h->flags & HELD_CUT)
        release_rest(e, h, h->ack, patch_window_field(h), why);
    else if (!h->parts.head)
        release_frame(e, h, h->frame, h->frame_len, why);
    discard(e, h);
}

void
engine_release_as(Compare *e, Held *h, uint32_t ack, uint16_t window)
{
    bool ack_lowered = ack != h->ack;
    bool window_lowered = window != patch_window_field(h);
    CompareWhy why = ack_lowered ? COMPARE_RELEASED_ACK_LOWERED : COMPARE_RELEASED_MATCHED;

    if (!ack_lowered && !window_lowered) {
        engine_release(e, h, why);
        return;
    }
    e->stats.windows_lowered += window_lowered;
    if (h->flags & HELD_CUT)
        release_rest(e, h, ack, window, why);
    else
        release_frame(e, h, patch_tcp(h, e->scratch, ack, window), h->frame_len, why);
    discard(e, h);
}

void
engine_release_part(Compare *e, Held *h, uint32_t to, uint32_t ack, uint16_t window)
{
    uint32_t from = h->flags & HELD_CUT ? h->cut : h->seq;
    uint32_t len = patch_part(h, e->scratch, from, to, ack, window);

    h->flags |= HELD_CUT;
    h->cut = to;
    release_frame(e, h, e->scratch, len, COMPARE_RELEASED_PART);
}

/* --- lending --- */

void
compare_settle(Compare *e, CompareSide side)
{
    /* They came last of this side, so no frame of the other is passed twice. */
    for (Held *h = e->age.tail; e->n_lent[side] > 0; h = h->link[LINK_AGE].prev) {
        if (!h->lent || h->side != side)
            continue;
        copy_frame(h);
        e->n_lent[side]--;
    }
}

uint32_t
compare_lent(const Compare *e, CompareSide side)
{
    return e->n_lent[side];
}
