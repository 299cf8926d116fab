/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-transcript.h - what was said on a QMP connection, in a file of bounded size */
#pragma once

#include "bytes.h"

#include <glib.h>

/* At this size the file becomes PATH.1, in place of an older one, and a new one begins. */
#define QMP_TRANSCRIPT_BYTES_MAX ((size_t)16 << 20)

#define QMP_TRANSCRIPT_IN '<'   /* a line from QEMU */
#define QMP_TRANSCRIPT_OUT '>'  /* a line to QEMU */
#define QMP_TRANSCRIPT_NOTE '!' /* a word of ours: why the connection ended */

/* Used from one thread. */
typedef struct QmpTranscript QmpTranscript;

/** Opens @path for appending, creates it with mode 0600 (arguments can hold secrets).
 *
 * @bytes_max: size at which it rotates, QMP_TRANSCRIPT_BYTES_MAX but in tests.
 * Errors: G_FILE_ERROR.
 */
QmpTranscript *qmp_transcript_new(const char *path, size_t bytes_max, GError **error);
void qmp_transcript_free(QmpTranscript *transcript);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QmpTranscript, qmp_transcript_free)

/** Appends "SECONDS.MICROSECONDS DIRECTION LINE\n", CLOCK_MONOTONIC.
 *
 * Writes to a regular file, so it waits for the page cache at most. A transcript never hurts the
 * connection: after a write error it goes silent. @transcript NULL: nothing happens.
 */
void qmp_transcript_line(QmpTranscript *transcript, char direction, View line);
