/* mpi/outbox.h - KV messages between ranks of one host: written once, read where they lie.
 *
 * Each worker has an outbox: memory that all workers of its host see, with a word for each reader
 * and OUTBOX_SLOTS places for a message.  The writer fills a place and says which over MPI, on the
 * edge that the message would have gone over, so order is MPI's.  The reader counts what it has
 * read; a place is free again when its reader has counted that far.
 *
 * Always true: of the shared words each has one writer (but `waits`, which one sets and the other
 * clears), so a reader that was given up and lives after all can spoil nothing but what it reads.
 * What the other end may change at any time is believed nothing of: a head is copied before it is
 * looked at, and a place has memory before it is written or told of.
 * Not here: who shares memory with whom (shared.h), MPI (port.c).
 */
#ifndef RANKSERVE_MPI_OUTBOX_H
#define RANKSERVE_MPI_OUTBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/msg.h"

enum { OUTBOX_SLOTS = 8 };
/* Of one reader: a slow one leaves room for others. */
enum { OUTBOX_UNREAD_MAX = 4 };

/* Of the shared memory, all zero at first; `slot_bytes` is the most one message may have. */
size_t outbox_bytes(uint32_t readers, size_t slot_bytes);

/* The writer's end.  NULL: no memory for the words. */
struct outbox;
struct outbox *outbox_open(void *at, uint32_t readers, size_t slot_bytes);
void outbox_close(struct outbox *o);  /* the memory is the caller's */
/* A place for this reader's next message, aligned as malloc's; NULL: none is free, or the host has
 * no memory for it.  What is taken is told to the reader, in the order of taking. */
void *outbox_take(struct outbox *o, uint32_t reader);
/* Which place this is; -1: it is no place of this outbox. */
int outbox_slot(const struct outbox *o, const void *at);
/* False: it has enough to read, and rings when it has read some. */
bool outbox_has_room(struct outbox *o, uint32_t reader);
/* It rings when it has read the next one. */
void outbox_ask(struct outbox *o, uint32_t reader);
/* It is lost: its places are free. */
void outbox_forget(struct outbox *o, uint32_t reader);

/* A reader's end of another rank's outbox. */
struct inbox {
    void *at;                         /* NULL: not seen from here */
    uint32_t readers, reader;         /* how many; which one we are */
    size_t slot_bytes;
};
/* The KV message of so many bytes there: its head, copied and checked, and where the bytes behind
 * it lie, which the writer may change meanwhile.  False: there is none. */
bool inbox_look(const struct inbox *i, uint32_t slot, size_t bytes, struct msg_kv *head,
                const void **payload);
/* It was read.  True: the writer waits for that, ring. */
bool inbox_done(const struct inbox *i);

#endif
