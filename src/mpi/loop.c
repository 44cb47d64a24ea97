/* mpi/loop.c - epoll, with timeouts finer than a millisecond; see loop.h. */
#include "mpi/loop.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "common/check.h"
#include "common/clock.h"

void loop_open(struct loop *l)
{
    *l = (struct loop){ .epoll = epoll_create1(EPOLL_CLOEXEC) };
    if (l->epoll < 0) die("cannot make an epoll descriptor: %s", strerror(errno));
}

void loop_add(struct loop *l, struct watch *w, uint32_t events)
{
    struct epoll_event e = { .events = events, .data.ptr = w };
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, w->fd, &e) != 0)
        die("cannot watch a descriptor: %s", strerror(errno));
}

void loop_change(struct loop *l, struct watch *w, uint32_t events)
{
    struct epoll_event e = { .events = events, .data.ptr = w };
    CHECK(epoll_ctl(l->epoll, EPOLL_CTL_MOD, w->fd, &e) == 0);
}

void loop_remove(struct loop *l, struct watch *w)
{
    epoll_ctl(l->epoll, EPOLL_CTL_DEL, w->fd, NULL);
    for (int i = 0; i < l->batch_count; i++)
        if (l->batch[i].data.ptr == w) l->batch[i].data.ptr = NULL;
}

void loop_wait(struct loop *l, uint64_t timeout_ns)
{
    struct pollfd p = { .fd = l->epoll, .events = POLLIN };
    struct timespec t = { .tv_sec = (time_t)(timeout_ns / NS_PER_S),
                          .tv_nsec = (long)(timeout_ns % NS_PER_S) };
    int got = ppoll(&p, 1, timeout_ns == UINT64_MAX ? NULL : &t, NULL);
    l->wakeups++;
    if (got <= 0) return;
    l->batch_count = epoll_wait(l->epoll, l->batch, sizeof l->batch / sizeof l->batch[0], 0);
    for (int i = 0; i < l->batch_count; i++) {
        struct watch *w = l->batch[i].data.ptr;
        if (w) w->call(w, l->batch[i].events);
    }
    l->batch_count = 0;
}
