/* mpi/lane_book.h - what was announced on one incoming lane, in order, until it has arrived.
 *
 * The order of the heads is the order of the transfers: whatever becomes of a request, what was
 * announced of it is received.  Its KVEND must not pass the KV in front of it, so it waits here
 * behind what was announced before it.  No MPI, no CUDA: tests/unit/mpi_lane_book_test.c.
 */
#ifndef RANKSERVE_MPI_LANE_BOOK_H
#define RANKSERVE_MPI_LANE_BOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/check.h"
#include "wire/msg.h"

struct lane_entry {
    struct lane_entry *next;
    bool is_end;
    union {
        struct msg_kv kv;
        struct msg_kvend end;
    };
};

struct lane_book {
    uint32_t lane, number;            /* the lane's; of the last transfer announced */
    uint32_t announced;               /* and not arrived                            */
    struct lane_entry *first, **last;
};

void lane_book_open(struct lane_book *b, uint32_t lane);
void lane_book_close(struct lane_book *b);
/* ERR_STALE: it is of another lane, and changes nothing.  ERR_FORMAT: not the next number.
 * ERR_FULL: LANE_QUEUE_MAX wait.  After these two nothing of the lane can be trusted. */
enum err lane_book_announce(struct lane_book *b, const struct msg_kv *m);
/* True: it waits, something was announced before it.  False: it may be obeyed now. */
bool lane_book_hold(struct lane_book *b, const struct msg_kvend *m);
/* The next entry whose turn has come, the caller's to free(): a KVEND with nothing in front of it,
 * or, when the oldest transfer has arrived, its head.  NULL: none. */
struct lane_entry *lane_book_next(struct lane_book *b, bool arrived);

#endif
