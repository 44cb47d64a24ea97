/* mpi/outbox.c - places, and who has read how much; see outbox.h.
 *
 * The words come first, a cache line for each reader, then the places from a page's border on.  MPI
 * orders a message's bytes before the word about it that it carries; the way back is `read`.
 */
#include "mpi/outbox.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"

enum { PAGE = 4096 };

struct words {                        /* of one reader */
    _Alignas(64) _Atomic uint64_t read;   /* messages; the reader's */
    _Atomic uint32_t waits;           /* 1: the writer wants to hear of the next one read */
};

struct place {
    bool used, there;                 /* taken; it has memory */
    uint32_t reader;
    uint64_t number;                  /* free when that one has read so many */
};

struct outbox {
    struct words *words;
    uint8_t *places;
    size_t place_bytes;
    uint32_t readers;
    uint64_t *taken;                  /* by reader */
    struct place place[OUTBOX_SLOTS];
};

static size_t page_up(size_t bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

static size_t words_bytes(uint32_t readers)
{
    return page_up(readers * sizeof(struct words));
}

size_t outbox_bytes(uint32_t readers, size_t slot_bytes)
{
    return words_bytes(readers) + OUTBOX_SLOTS * page_up(slot_bytes);
}

struct outbox *outbox_open(void *at, uint32_t readers, size_t slot_bytes)
{
    if (!mem_populate(at, words_bytes(readers))) return NULL;
    struct outbox *o = mem_alloc(sizeof *o);
    *o = (struct outbox){ .words = at, .places = (uint8_t *)at + words_bytes(readers),
                          .place_bytes = page_up(slot_bytes), .readers = readers };
    o->taken = mem_array(readers, sizeof *o->taken);
    return o;
}

void outbox_close(struct outbox *o)
{
    free(o->taken);
    free(o);
}

static uint64_t unread(const struct outbox *o, uint32_t reader)
{
    return o->taken[reader] - atomic_load(&o->words[reader].read);
}

static bool is_free(const struct outbox *o, const struct place *p)
{
    return !p->used || atomic_load(&o->words[p->reader].read) >= p->number;
}

void *outbox_take(struct outbox *o, uint32_t reader)
{
    CHECK(reader < o->readers);
    if (unread(o, reader) >= OUTBOX_UNREAD_MAX) return NULL;
    for (size_t i = 0; i < OUTBOX_SLOTS; i++) { /* the first: most likely still in a cache */
        struct place *p = &o->place[i];
        if (!is_free(o, p)) continue;
        uint8_t *at = o->places + i * o->place_bytes;
        if (!p->there && !mem_populate(at, o->place_bytes)) continue;
        *p = (struct place){ .used = true, .there = true, .reader = reader,
                             .number = ++o->taken[reader] };
        return at;
    }
    return NULL;
}

int outbox_slot(const struct outbox *o, const void *at)
{
    const uint8_t *place = at;
    if (place < o->places || place >= o->places + OUTBOX_SLOTS * o->place_bytes) return -1;
    return (int)((size_t)(place - o->places) / o->place_bytes);
}

void outbox_ask(struct outbox *o, uint32_t reader)
{
    atomic_store(&o->words[reader].waits, 1);
}

/* First the wish, then the look, and the reader the other way round: one of them sees the other. */
bool outbox_has_room(struct outbox *o, uint32_t reader)
{
    if (unread(o, reader) < OUTBOX_UNREAD_MAX) return true;
    outbox_ask(o, reader);
    return unread(o, reader) < OUTBOX_UNREAD_MAX;
}

void outbox_forget(struct outbox *o, uint32_t reader)
{
    for (size_t i = 0; i < OUTBOX_SLOTS; i++)
        if (o->place[i].reader == reader) o->place[i].used = false;
}

bool inbox_look(const struct inbox *i, uint32_t slot, size_t bytes, struct msg_kv *head,
                const void **payload)
{
    if (!i->at || slot >= OUTBOX_SLOTS) return false;
    if (bytes < sizeof *head || bytes > i->slot_bytes) return false;
    const uint8_t *at = (const uint8_t *)i->at + words_bytes(i->readers)
                      + slot * page_up(i->slot_bytes);
    memcpy(head, at, sizeof *head);
    atomic_signal_fence(memory_order_seq_cst); /* what is looked at from here on is the copy */
    *payload = at + sizeof *head;
    return msg_as_kv(head, bytes) != NULL;
}

bool inbox_done(const struct inbox *i)
{
    struct words *w = (struct words *)i->at + i->reader;
    atomic_fetch_add(&w->read, 1);
    return atomic_load(&w->waits) && atomic_exchange(&w->waits, 0);
}
