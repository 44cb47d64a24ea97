/* mpi/lane_book.c - see lane_book.h. */
#include "mpi/lane_book.h"

#include <stdlib.h>

#include "common/mem.h"

void lane_book_open(struct lane_book *b, uint32_t lane)
{
    *b = (struct lane_book){ .lane = lane };
    b->last = &b->first;
}

static struct lane_entry *take_first(struct lane_book *b)
{
    struct lane_entry *e = b->first;
    b->first = e->next;
    if (!b->first) b->last = &b->first;
    if (!e->is_end) b->announced--;
    return e;
}

void lane_book_close(struct lane_book *b)
{
    while (b->first) free(take_first(b));
}

static struct lane_entry *add(struct lane_book *b)
{
    struct lane_entry *e = mem_alloc(sizeof *e);
    *b->last = e;
    b->last = &e->next;
    return e;
}

enum err lane_book_announce(struct lane_book *b, const struct msg_kv *m)
{
    if (m->lane != b->lane) return ERR_STALE;
    if (m->number != b->number + 1) return ERR_FORMAT;
    if (b->announced == LANE_QUEUE_MAX) return ERR_FULL;
    b->number++;
    b->announced++;
    add(b)->kv = *m;
    return OK;
}

bool lane_book_hold(struct lane_book *b, const struct msg_kvend *m)
{
    if (!b->first) return false;
    struct lane_entry *e = add(b);
    e->is_end = true;
    e->end = *m;
    return true;
}

struct lane_entry *lane_book_next(struct lane_book *b, bool arrived)
{
    return b->first && (b->first->is_end || arrived) ? take_first(b) : NULL;
}
