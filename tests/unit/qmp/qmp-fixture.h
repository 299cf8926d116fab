/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-fixture.h - a client, a fake QEMU and a log of what the client reported */
#pragma once

#include "fake-qmp.h"
#include "qmp-client.h"

#include <check.h>
#include <json.h>

enum {
    WAIT_MS = 10000,   /* nothing takes this long; a slow machine may */
    COMMAND_MS = 9000, /* a deadline that must not strike */
};

/* Everything the client reports becomes a word in the log: "ready", "event:STOP", "closed",
 * "NAME:ok", "NAME:DeviceNotFound", "NAME:timeout", ... so that order is a string comparison. */
typedef struct Fixture {
    FakeQmp *qemu;
    QmpClient *client;
    GString *log;
    unsigned ready, events, closed, replies, destroyed;
    GError *reason;
    GError *last_error;
    struct json_object *last_value;
    const char *unref_in; /* a word: the callback that writes it drops the client */
    void (*hook)(struct Fixture *f, const char *word);
} Fixture;

static inline void
fixture_word(Fixture *f, const char *word)
{
    if (f->log->len)
        g_string_append_c(f->log, ' ');
    g_string_append(f->log, word);
    if (f->unref_in && g_str_equal(f->unref_in, word))
        g_clear_pointer(&f->client, qmp_client_unref);
    if (f->hook)
        f->hook(f, word);
}

static inline void
fixture_on_ready(QmpClient *client, gpointer user_data)
{
    Fixture *f = user_data;

    (void)client;
    f->ready++;
    fixture_word(f, "ready");
}

static inline void
fixture_on_event(QmpClient *client, const char *name, struct json_object *data,
                 int64_t timestamp_us, gpointer user_data)
{
    Fixture *f = user_data;
    g_autofree char *word = g_strconcat("event:", name, NULL);

    (void)client;
    (void)data;
    ck_assert_int_ge(timestamp_us, -1);
    f->events++;
    fixture_word(f, word);
}

static inline void
fixture_on_closed(QmpClient *client, const GError *reason, gpointer user_data)
{
    Fixture *f = user_data;

    (void)client;
    f->closed++;
    g_clear_error(&f->reason);
    f->reason = g_error_copy(reason);
    fixture_word(f, "closed");
}

static const QmpClientHandlers fixture_handlers = {
    .ready = fixture_on_ready,
    .event = fixture_on_event,
    .closed = fixture_on_closed,
};

typedef struct Pending {
    Fixture *f;
    char *name;
    unsigned calls;
} Pending;

static inline const char *
error_word(const GError *error)
{
    static const char *const words[] = {
        [QMP_ERROR_CONNECT] = "connect",     [QMP_ERROR_PROTOCOL] = "protocol",
        [QMP_ERROR_TOO_LARGE] = "too-large", [QMP_ERROR_TIMEOUT] = "timeout",
        [QMP_ERROR_CANCELLED] = "cancelled", [QMP_ERROR_CLOSED] = "closed",
    };

    ck_assert_uint_eq(error->domain, QMP_ERROR);
    return error->code == QMP_ERROR_COMMAND ? qmp_error_class(error) : words[error->code];
}

static inline void
fixture_on_reply(struct json_object *ret_value, const GError *error, gpointer user_data)
{
    Pending *pending = user_data;
    Fixture *f = pending->f;
    g_autofree char *word =
        g_strdup_printf("%s:%s", pending->name, error ? error_word(error) : "ok");

    ck_assert_uint_eq(++pending->calls, 1);
    ck_assert(!error || !ret_value);
    f->replies++;
    g_clear_error(&f->last_error);
    f->last_error = error ? g_error_copy(error) : NULL;
    json_object_put(f->last_value);
    f->last_value = json_object_get(ret_value);
    fixture_word(f, word);
}

static inline void
pending_free(gpointer data)
{
    Pending *pending = data;

    pending->f->destroyed++;
    g_free(pending->name);
    g_free(pending);
}

static inline Pending *
pending_new(Fixture *f, const char *name)
{
    Pending *pending = g_new0(Pending, 1);

    pending->f = f;
    pending->name = g_strdup(name);
    return pending;
}

static inline guint64
fixture_send(Fixture *f, const char *command, unsigned timeout_ms)
{
    return qmp_client_send(f->client, command, NULL, timeout_ms, fixture_on_reply,
                           pending_new(f, command), pending_free);
}

static inline guint64
fixture_send_oob(Fixture *f, const char *command, unsigned timeout_ms)
{
    return qmp_client_send_oob(f->client, command, NULL, timeout_ms, fixture_on_reply,
                               pending_new(f, command), pending_free);
}

static inline guint64
fixture_yank(Fixture *f, const char *instance, unsigned timeout_ms)
{
    return qmp_client_yank(f->client, &instance, 1, timeout_ms, fixture_on_reply,
                           pending_new(f, "yank"), pending_free);
}

/* Connected, not ready: the script comes first. */
static inline void
fixture_start(Fixture *f)
{
    int fd;

    *f = (Fixture){.log = g_string_new(NULL)};
    f->qemu = fake_qmp_new(&fd);
    f->client = qmp_client_new_fd(fd, WAIT_MS, &fixture_handlers, f);
}

static inline void
fixture_start_ready(Fixture *f)
{
    fixture_start(f);
    ck_assert(fake_qmp_wait_until(f->ready, WAIT_MS));
    g_string_set_size(f->log, 0);
}

static inline void
fixture_clear(Fixture *f)
{
    g_clear_pointer(&f->client, qmp_client_unref);
    fake_qmp_free(f->qemu);
    g_string_free(f->log, TRUE);
    g_clear_error(&f->reason);
    g_clear_error(&f->last_error);
    json_object_put(f->last_value);
}
