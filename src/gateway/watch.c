/* gateway/watch.c - see watch.h. */
#include "gateway/watch.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/check.h"
#include "gateway/slots.h"

struct watched {
    int fd;
    void *owner;
};

struct watch {
    int epoll;
    void (*gone)(void *owner);
    struct slots slots;               /* of struct watched */
};

struct watch *watch_open(void (*gone)(void *owner))
{
    struct watch *w = mem_alloc(sizeof *w);
    w->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (w->epoll < 0) die("epoll_create1 failed");
    w->gone = gone;
    slots_open(&w->slots, sizeof(struct watched));
    return w;
}

void watch_close(struct watch *w)
{
    if (!w) return;
    close(w->epoll);
    slots_close(&w->slots);
    free(w);
}

int watch_fd(const struct watch *w)
{
    return w->epoll;
}

uint64_t watch_add(struct watch *w, int fd, void *owner)
{
    struct watched *slot;
    uint64_t number = slots_take(&w->slots, (void **)&slot);
    if (!number) return 0;
    *slot = (struct watched){ fd, owner };
    struct epoll_event event = { .events = EPOLLRDHUP, .data.u64 = number };
    if (epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &event) == 0) return number;
    slots_give(&w->slots, number);
    return 0;
}

void watch_remove(struct watch *w, uint64_t number)
{
    struct watched *slot = slots_find(&w->slots, number);
    if (!slot) return;
    epoll_ctl(w->epoll, EPOLL_CTL_DEL, slot->fd, NULL);
    slots_give(&w->slots, number);
}

void watch_poll(struct watch *w)
{
    struct epoll_event events[64];
    int count = epoll_wait(w->epoll, events, 64, 0);
    for (int i = 0; i < count; i++) {
        struct watched *slot = slots_find(&w->slots, events[i].data.u64);
        if (!slot) continue;          /* removed after the event was taken */
        void *owner = slot->owner;
        watch_remove(w, events[i].data.u64);
        w->gone(owner);
    }
}
