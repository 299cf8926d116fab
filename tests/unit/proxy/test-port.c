/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test-port.c - a port by itself: when it is drained */
#include "port.h"

#include "check-main.h"

#include <unistd.h>

#include "fd.h"

enum { QUEUE_BYTES = 8 << 20 };

typedef struct Taken {
    unsigned n;
    size_t bytes;
} Taken;

static void
count_frame(gpointer user_data, const uint8_t *frame, size_t len)
{
    Taken *taken = user_data;

    (void)frame;
    taken->n++;
    taken->bytes += len;
}

static void
write_frames(int fd, unsigned n, size_t len)
{
    static uint8_t frame[HOLD_QUEUE_FRAME_MAX] = {[PORT_VNET_BYTES] = 0x02};

    for (unsigned i = 0; i < n; i++)
        ck_assert_int_eq(write(fd, frame, PORT_VNET_BYTES + len), (ssize_t)(PORT_VNET_BYTES + len));
}

/* Who is told so asks no more until the descriptor tells of something. */
START_TEST(unit_a_port_is_drained_when_fewer_came_than_were_asked_for)
{
    g_autoptr(HoldQueue) queue = hold_queue_new(QUEUE_BYTES);
    Taken taken = {0};
    int fd;
    Port *port = port_tap_new(-1, 1, &fd, NULL);

    ck_assert_ptr_nonnull(port);
    write_frames(fd, 40, 60);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 32);
    ck_assert(!port->drained);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 8);
    ck_assert(port->drained);
    /* Large ones are read one by one, but more than one in a turn. */
    write_frames(fd, 1, 60000);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 1);
    write_frames(fd, 10, 60000);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 8);
    ck_assert(!port->drained);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 2);
    ck_assert(port->drained);
    ck_assert_uint_eq(taken.n, 51);
    ck_assert_uint_eq(taken.bytes,
                      40 * 60 + 11 * (size_t)60000 + taken.n * (size_t)PORT_VNET_BYTES);
    fd_clear(&fd);
    port->ops->close(port);
}
END_TEST

/* No event tells of the end that came together with the last frames. */
START_TEST(err_the_end_behind_the_last_frames_is_to_be_read)
{
    g_autoptr(HoldQueue) queue = hold_queue_new(QUEUE_BYTES);
    Taken taken = {0};
    int fd;
    Port *port = port_tap_new(-1, 1, &fd, NULL);

    ck_assert_ptr_nonnull(port);
    write_frames(fd, 3, 60);
    fd_clear(&fd);
    ck_assert_int_eq(port->ops->read(port, queue, 64, count_frame, &taken), 3);
    ck_assert(!port->drained);
    ck_assert_int_lt(port->ops->read(port, queue, 64, count_frame, &taken), 0);
    port->ops->close(port);
}
END_TEST

CHECK_MAIN("port", unit_a_port_is_drained_when_fewer_came_than_were_asked_for,
           err_the_end_behind_the_last_frames_is_to_be_read)
