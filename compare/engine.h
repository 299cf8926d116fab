/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* engine.h - the inside of an engine, shared by the files that implement its rules */
#pragma once

#include "compare.h"
#include "flow.h"
#include "held.h"
#include "slab.h"

enum {
    /* A real stack does not send further out of order; bounds each search in a chain. */
    ENGINE_MAX_WALK = 1024,
    ENGINE_MAX_BACKLOG = 64,     /* frames of a connection that waits for the one before */
    ENGINE_MAX_FRAGMENTS = 128,  /* of one datagram: 64 KiB at the smallest usual MTU, 576 */
    ENGINE_MAX_FRAG_SETS = 1024, /* incomplete datagrams, both sides */
    ENGINE_FRAG_BUCKETS = 1024,
};

struct FragSet {
    FragSet *next;                   /* in its bucket */
    Frame first;                     /* addresses, protocol and VLANs of the datagram */
    HeldList sorted;                 /* the fragments by offset, LINK_CHAIN */
    HeldList arrived;                /* the same in arrival order, LINK_FIFO */
    uint64_t words[FRAME_KEY_WORDS]; /* what identifies it */
    uint32_t n_parts;
    uint32_t total_bytes; /* known with the last fragment; else 0 */
    uint32_t bucket;
    bool poisoned; /* reported: waits for the checkpoint */
};

struct Compare {
    CompareConfig config;
    CompareOps ops;
    void *opaque;
    HashKey hash_key;
    Slab *slab;
    FlowTable *flows;
    HeldList age;     /* all held frames, in arrival order */
    Held *age_check;  /* first of them whose timeout was not reported */
    Held *age_ack;    /* first ack without data that may wait for a window; see window.c */
    Held *part_check; /* first of them that was not looked at for leaving in part */
    HeldList future;  /* frames of epochs to come */
    HeldList *index;  /* datagrams by payload hash; index_mask + 1 buckets */
    uint32_t index_mask;
    FragSet *frag_buckets[ENGINE_FRAG_BUCKETS];
    uint32_t n_frag_sets;
    int64_t now_ns;
    int64_t window_wait_ns; /* an ack without data may wait this long for the window */
    int64_t next_second_ns;
    uint32_t now_s;
    uint64_t epoch;
    uint32_t n_lent[2]; /* held frames whose bytes are still the caller's */
    bool lending;       /* inside compare_lend_batch() */
    bool checkpointing;
    bool memory_reported; /* in this epoch */
    bool flows_reported;
    bool overflow;    /* frames of this epoch wait in `future`: there was no room at its commit */
    uint8_t *scratch; /* FRAME_MAX_BYTES: a frame that is changed on its way through */
    DigestKey digest_key;
    CompareWantFunc want; /* NULL: no digests */
    CompareStats stats;
};

/* engine.c */

/* Where two frames differ: the offset to report, and the places in the two payloads. */
typedef struct DiffSpot {
    uint32_t offset;
    uint32_t p_pos;
    uint32_t s_pos;
} DiffSpot;

/** Takes in what the rules need of @frame. */
void engine_describe(Compare *e, Held *h, const Frame *frame);
/** Finds the flow of @frame and runs its rules over @h.
 *
 * Return: 0, or -ENOBUFS if there is no room for a flow (reported).
 */
int engine_route(Compare *e, Held *h, const Frame *frame);
/** The memory bound was met: reported once an epoch. Return: -ENOBUFS. */
int engine_out_of_memory(Compare *e);
/** Reports that @p and @s (either may be NULL) differ; at most once per flow and epoch. */
void engine_diverge(Compare *e, Flow *f, CompareRule rule, DiffSpot spot, const Held *p,
                    const Held *s);
/** The same for what is not of one flow; @key may be NULL. */
void engine_report(Compare *e, const FlowKey *key, CompareRule rule, DiffSpot spot, const Held *p,
                   const Held *s);
/** What the secondary said of a flow that waits for a checkpoint is of no more use. */
void engine_forget_secondary(Compare *e, Flow *f);
/** The caller's time; going backwards counts as standing still. */
void engine_advance(Compare *e, int64_t now_ns);

/* held.c */

/** Releases a frame of the primary that is on no flow list, and frees it. */
void engine_release(Compare *e, Held *h, CompareWhy why);
/** The same for a TCP segment that matched, with this ack and this window field. */
void engine_release_as(Compare *e, Held *h, uint32_t ack, uint16_t window);
/** Releases the payload of @h up to the number @to, less what has left, with this ack and this
 * window field. @h stays where it is. */
void engine_release_part(Compare *e, Held *h, uint32_t to, uint32_t ack, uint16_t window);
/** Forgets a frame that is on no flow list. */
void engine_forget(Compare *e, Held *h);
/** Moves @h, which lives on the stack, to slab memory, in all lists it is on, and copies its bytes,
 * now or (if it is lent) in compare_settle().
 *
 * Return: the stored frame; NULL if the bound is reached, @h then still is on its lists.
 */
Held *engine_store(Compare *e, Held *h);
/** Takes @h off the list of all held frames. */
void engine_unage(Compare *e, Held *h);
/** Puts @h at the end of the list of all held frames. */
void engine_age(Compare *e, Held *h);
/** Stores a frame of an epoch to come. Return: 0, or -ENOBUFS if there is no room (reported). */
int engine_store_future(Compare *e, Held *h);
/** Undoes the links of a frame that could not be stored. It is offered again later. */
void engine_unlink(Held *h);
/** Moves the mark to the first ack of the primary from @h on. It only moves on, so that each frame
 * is passed once. */
void engine_seek_age_ack(Compare *e, Held *h);

/* tcp.c */

void tcp_process(Compare *e, Flow *f, Held *h);
/** A frame of the primary leaves because of a checkpoint: its bytes count as known. */
void tcp_note_committed(Flow *f, const Held *h);
/** The same for a frame of an epoch that is committed already: the secondary knows all of it. */
void tcp_note_stale(Flow *f, const Held *h);
/** @h, of the primary, has been here for as long as an ack may wait for the window. */
void tcp_waited_for_window(Compare *e, Held *h);
/** True for a frame of the secondary that only waits for one before it to be swept up. */
bool tcp_is_covered(const Flow *f, const Held *h);
/** After tcp_note_committed() outside of a commit: what is held may be covered now. */
void tcp_window_moved(Compare *e, Flow *f);
/** Lets what is equal of the first segment of @f leave, if it has waited for the rest for long. */
void tcp_release_part(Compare *e, Flow *f);

/* tcp-stream.c */

/** A frame of @f waited too long: where the stream is stuck. */
DiffSpot tcp_stuck_at(const Flow *f);

/* client.c */

/** The guests have said FIN and the client too, and all its data were acknowledged to it. */
bool client_is_done(const Flow *f);

/* digest.c */

/** Takes in what the digests in @in stand for, after engine_describe(). False: they make no sense.
 */
bool digest_describe(const Compare *e, Held *h, const Frame *frame, const CompareFrame *in);
/** @p and @s, a digest, cover the same numbers; true: they are equal. */
bool digest_equal(const Compare *e, const Held *p, const Held *s);
/** @p and @s, a digest, both cover `next` of @f: how far they are known to be equal. Asks for the
 * whole of @s if that cannot be known. */
uint32_t digest_match(Compare *e, const Flow *f, const Held *p, Held *s);
/** Asks for the whole of @s. */
void digest_want(Compare *e, Held *s);
/** @whole takes the place of digests that were not enough. */
void digest_replace(Compare *e, Flow *f, const Held *whole);

/* dgram.c */

void dgram_process(Compare *e, Flow *f, Held *h);
/** Takes @h out of the datagram index if it is there. */
void dgram_unindex(Compare *e, Held *h);
/** True if @h, of a class without a stream, tells neighbours where the guest is. */
bool dgram_is_announcement(const Held *h);
/** Forgets a frame of the secondary that nothing of the primary matched. */
void dgram_forget_secondary(Compare *e, Held *h);
/** Where the payloads of @p and @s (either may be NULL) first differ. */
DiffSpot dgram_first_difference(const Held *p, const Held *s);

/* fragment.c */

/** Takes in a fragment; may complete a datagram and route it. Return: 0 or -ENOBUFS. */
int fragment_process(Compare *e, Held *h, const Frame *frame);
/** Forgets all sets; the frames in them stay on the list of all held frames. */
void fragment_forget_all(Compare *e);
/** A fragment waited too long for the others. */
void fragment_timeout(Compare *e, const Held *h);
