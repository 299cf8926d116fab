/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* shard.h - an engine of colo-compare, in the main thread or in one of its own */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "compare.h"
#include "framing.h"
#include "outqueue.h"
#include "record.h"

/* Shard: one engine with its ring of divergences. All functions are for the main thread. */
typedef struct Shard Shard;

enum { SHARD_RING_RECORDS = 64 };

/** Creates a shard that puts released packets on @out.
 *
 * @wake_fd: an eventfd to write to when something was released or diverged; the shard then runs in
 * a thread of its own. -1: it runs in shard_run().
 * @forgets: somebody makes the checkpoint that is asked for when memory is full, so the secondary's
 * frames for which there is no room are forgotten at once instead of being refused.
 * Return: 0 or a negative errno.
 */
int shard_new(const CompareConfig *config, OutQueue *out, int wake_fd, bool forgets,
              Shard **ret_shard);
void shard_free(Shard *shard);

/** Without a thread: runs the engine. As compare_lend_batch(); the bytes must lie behind the header
 * they were framed with (see outqueue_lend()). */
size_t shard_run(Shard *shard, CompareSide side, const CompareFrame *frames, size_t n,
                 int64_t now_ns, int *ret_error);
/** Without a thread: as compare_settle(); puts what was released on the queue. */
void shard_settle(Shard *shard, CompareSide side);
/** Without a thread: as compare_lent(). */
uint32_t shard_lent(const Shard *shard, CompareSide side);
/** Without a thread: timeouts; puts what was released on the queue. */
void shard_tick(Shard *shard, int64_t now_ns);
int64_t shard_next_deadline_ns(const Shard *shard);

/** With a thread: collects a packet of the current epoch. False: no memory. */
bool shard_add(Shard *shard, CompareSide side, const FramingPacket *packet);
/** With a thread: hands over what was collected. */
void shard_send(Shard *shard);
/** With a thread: bytes that it has not yet worked on. */
size_t shard_backlog_bytes(const Shard *shard);

/** Commits the next epoch: packets handed over before are covered by it. */
void shard_commit(Shard *shard, int64_t now_ns);

/** The epoch of packets that come now. */
uint64_t shard_epoch(const Shard *shard);

/** What the engine holds. @ret_bytes: frames of each side. Return: memory used. */
size_t shard_held(const Shard *shard, size_t ret_bytes[static 2]);
/** Divergences so far. */
uint64_t shard_divergences(const Shard *shard);
/** Adds this shard's counters to @sum and @n_forgotten and its divergences to the array @list. */
void shard_report(Shard *shard, CompareStats *sum, uint64_t *n_forgotten, struct json_object *list);
