/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake-qmp.h - a scripted QMP server in the test's own main loop
 *
 * It speaks as QEMU does: greeting, negotiation, CR LF, ids echoed, errors with QEMU's classes. A
 * command, argument or event that the recorded schema of a real QEMU does not know is refused
 * (CommandNotFound, GenericError) and counted, so that a test cannot pass on a command QEMU would
 * not take. A known command that is not scripted returns {}.
 *
 * Everything runs in the thread-default GMainContext of new(); one client at a time. Misuse by the
 * test aborts.
 *
 *     int fd;
 *     g_autoptr(FakeQmp) qemu = fake_qmp_new(&fd);
 *
 *     fake_qmp_reply(qemu, "query-status", "{\"running\": true, \"status\": \"running\"}");
 *     ... the code under test gets fd ...
 *     ck_assert(fake_qmp_wait_until(replied, 5000));
 *     ck_assert_uint_eq(fake_qmp_refused(qemu), 0);
 */
#pragma once

#include <glib.h>

#include <stdbool.h>

struct json_object;

typedef struct FakeQmp FakeQmp;

/** A server on a socketpair. @ret_client_fd: the client's end, owned by the caller. */
FakeQmp *fake_qmp_new(int *ret_client_fd);

/** A server that listens on the UNIX socket @path; a client that went may come again. */
FakeQmp *fake_qmp_new_listening(const char *path);
void fake_qmp_free(FakeQmp *fake);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(FakeQmp, fake_qmp_free)

/** Before the first turn of the loop: what is sent as greeting instead of QEMU 11.1.3's (a line end
 * is added); NULL: none. */
void fake_qmp_set_greeting(FakeQmp *fake, const char *text);

/** Scripts one answer to @command; several are used up in order, after them the default is used.
 *
 * fake_qmp_reply(): @ret_json is the "return" value. fake_qmp_reply_raw(): @line instead of a
 * reply;
 * "%ID%" in it becomes the command's id. fake_qmp_hold(): no answer until fake_qmp_release().
 */
void fake_qmp_reply(FakeQmp *fake, const char *command, const char *ret_json);
void fake_qmp_reply_error(FakeQmp *fake, const char *command, const char *error_class,
                          const char *desc);
void fake_qmp_reply_raw(FakeQmp *fake, const char *command, const char *line);
void fake_qmp_hold(FakeQmp *fake, const char *command);

/** Sets what @command returns whenever nothing is scripted for it (else {}). */
void fake_qmp_set_default(FakeQmp *fake, const char *command, const char *ret_json);

/** Answers the oldest held @command. False: none is held. */
gboolean fake_qmp_release(FakeQmp *fake, const char *command, const char *ret_json);

/** @func is called for each @command that was not refused, after its answer was queued: the place
 * to emit events. One per command; NULL removes it. @arguments: borrowed, may be NULL. */
typedef void (*FakeQmpFunc)(FakeQmp *fake, struct json_object *arguments, gpointer user_data);
void fake_qmp_on_command(FakeQmp *fake, const char *command, FakeQmpFunc func, gpointer user_data);

/** Emits an event; @data_json may be NULL. It has to be an event of the recorded QEMU. */
void fake_qmp_emit(FakeQmp *fake, const char *event, const char *data_json);

/** Sends bytes as they are. */
void fake_qmp_send_raw(FakeQmp *fake, const void *bytes, size_t len);

/** Sends @n bytes per turn of the loop; 0: as many as go. */
void fake_qmp_set_drip(FakeQmp *fake, size_t n);

/** Stops, or goes on, reading and writing, as a hung QEMU. */
void fake_qmp_freeze(FakeQmp *fake, gboolean frozen);

/** Sends what is queued, then closes the connection, as a QEMU that exits. */
void fake_qmp_close(FakeQmp *fake);

/** What was seen. Times @command arrived (refused ones not counted); its latest arguments,
 * borrowed, NULL when none; commands refused and events of the test's own that were unknown; text
 * of the latest refusal, or NULL; negotiation done. */
unsigned fake_qmp_count(const FakeQmp *fake, const char *command);
struct json_object *fake_qmp_arguments(const FakeQmp *fake, const char *command);
unsigned fake_qmp_refused(const FakeQmp *fake);
const char *fake_qmp_refusal(const FakeQmp *fake);
gboolean fake_qmp_is_ready(const FakeQmp *fake);
/** Whether the latest @command came as exec-oob. */
gboolean fake_qmp_was_oob(const FakeQmp *fake, const char *command);

/** One turn of the thread-default context, waiting 5 ms at most. */
void fake_qmp_iterate(void);

/** Turns the loop until @condition holds. False: it did not within @timeout_ms. */
#define fake_qmp_wait_until(condition, timeout_ms)                                                 \
    ({                                                                                             \
        gint64 fake_qmp_end_us_ = g_get_monotonic_time() + (timeout_ms)*G_TIME_SPAN_MILLISECOND;   \
        bool fake_qmp_met_;                                                                        \
                                                                                                   \
        while (!(fake_qmp_met_ = (condition)) && g_get_monotonic_time() < fake_qmp_end_us_)        \
            fake_qmp_iterate();                                                                    \
        fake_qmp_met_;                                                                             \
    })
