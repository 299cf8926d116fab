/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qmp-error.c - the errors of a QMP connection, and QEMU's own error class inside them */
#include "qmp-error.h"

/* The class travels in the GError itself, so copies and propagation keep it. */
typedef struct QmpErrorPrivate {
    char *error_class;
} QmpErrorPrivate;

static void
qmp_error_private_init(QmpErrorPrivate *priv)
{
    priv->error_class = NULL;
}

static void
qmp_error_private_copy(const QmpErrorPrivate *src, QmpErrorPrivate *dest)
{
    dest->error_class = g_strdup(src->error_class);
}

static void
qmp_error_private_clear(QmpErrorPrivate *priv)
{
    g_clear_pointer(&priv->error_class, g_free);
}

G_DEFINE_EXTENDED_ERROR(QmpError, qmp_error)

const char *
qmp_error_class(const GError *error)
{
    if (!error || error->domain != QMP_ERROR)
        return NULL;
    return qmp_error_get_private(error)->error_class;
}

GError *
qmp_error_new_with_class(QmpError code, const char *error_class, const char *message)
{
    GError *error = g_error_new_literal(QMP_ERROR, (int)code, message);

    qmp_error_get_private(error)->error_class = g_strdup(error_class);
    return error;
}

GError *
qmp_error_new_command(const char *error_class, const char *desc)
{
    g_autofree char *message = g_strdup_printf("%s: %s", error_class, desc);

    return qmp_error_new_with_class(QMP_ERROR_COMMAND, error_class, message);
}
