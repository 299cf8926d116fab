/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* verify.h - finds where two disks that should be equal differ, while the guest writes (pure) */
#pragma once

#include "chunk-digest.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * It does no I/O and has no clock: the owner carries out the steps it is given, reads the digests
 * of a step's chunks on both sides and hands them back. One thread at a time; no allocation after
 * verify_new(). Chunks are DIRTY_CHUNK_BYTES.
 */
typedef struct Verify Verify;

enum {
    VERIFY_BATCH_CHUNKS = 16,      /* of a step: 1 MiB is read on each side for it */
    VERIFY_MAX_STEPS = 4,          /* under way at once */
    VERIFY_MAX_SUSPECTS = 1024,    /* more, and looking for further ones waits */
    VERIFY_RECHECK_CHUNKS = 64,    /* in one barrier: some milliseconds of reading */
    VERIFY_MAX_ROUNDS = 100,       /* barriers after which a chunk that never rests is let go */
    VERIFY_LISTED = 16,            /* differences that are kept with their digests */
    VERIFY_MAX_DIFFERENCES = 1024, /* after which it ends: such a disk is to be synced anew */
};

/** @rate_bytes_s: of the disk looked at (0: no limit). */
Verify *verify_new(uint64_t size_bytes, uint64_t rate_bytes_s, int64_t now_ns);
/** Steps under way are forgotten. */
void verify_free(Verify *verify);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Verify, verify_free)

typedef struct VerifyStep {
    unsigned id;
    unsigned n_chunks; /* at most VERIFY_BATCH_CHUNKS */
    uint64_t offset, len;
} VerifyStep;

/**
 * What to compare next.
 *
 * Return: false: nothing now. Ask again after verify_done(), verify_barrier(), and at
 * *@ret_when_ns (INT64_MAX: no time will change it).
 */
bool verify_next(Verify *verify, int64_t now_ns, VerifyStep *ret_step, int64_t *ret_when_ns);

/**
 * A step is through. @local, @peer: the digests of its chunks, one behind the other. @r: a negative
 * errno ends the verification; the digests are not looked at.
 */
void verify_done(Verify *verify, unsigned id, int r, const uint8_t *local, const uint8_t *peer);

/**
 * The guest stands, all it wrote is in both disks, and nothing more reaches the peer's until
 * verify_release(). Suspects are looked at now. They may be waited for (verify_is_rechecking()).
 */
void verify_barrier(Verify *verify);
/** Writes flow again. What is not through is looked at in the next barrier. */
void verify_release(Verify *verify);
bool verify_is_rechecking(const Verify *verify);
/** The guest changes this range: before it is on either disk. */
void verify_written(Verify *verify, uint64_t offset, uint64_t len);

void verify_cancel(Verify *verify);

typedef enum VerifyState {
    VERIFY_RUNNING,
    VERIFY_DONE,
    VERIFY_CANCELLED,
    VERIFY_FAILED,
    VERIFY_STATE_COUNT,
} VerifyState;

const char *verify_state_name(VerifyState state); /* "running", "done", "cancelled", "failed" */

typedef struct VerifyDifference {
    uint64_t offset, len;
    uint8_t local[CHUNK_DIGEST_BYTES], peer[CHUNK_DIGEST_BYTES];
} VerifyDifference;

typedef struct VerifyStatus {
    VerifyState state;
    int r; /* of VERIFY_FAILED: negative errno */
    uint64_t done_bytes, all_bytes;
    unsigned suspects;  /* differed, to be looked at in a barrier */
    unsigned unsettled; /* written in each barrier they were to be looked at in */
    unsigned n_differences;
    bool is_cut; /* ended at VERIFY_MAX_DIFFERENCES */
    unsigned n_listed;
    VerifyDifference listed[VERIFY_LISTED]; /* in the order they were found */
} VerifyStatus;

void verify_status(const Verify *verify, VerifyStatus *ret_status);
