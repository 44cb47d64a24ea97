/* mpi/link_meter.h - how fast KV leaves this rank, from the times when a link held it up.
 *
 * From when a peer first has no room for more until it has room again, what was sent to it in
 * between went as fast as the link can.  One peer at a time.  Whoever sends must look again soon:
 * when nobody did for a while (the sequence was cancelled, or its last byte just fitted) the time
 * says nothing about the link, and the measurement is given up.
 */
#ifndef RANKSERVE_MPI_LINK_METER_H
#define RANKSERVE_MPI_LINK_METER_H

#include <stdbool.h>
#include <stdint.h>

struct link_meter {
    int peer;
    uint64_t since_ns, seen_ns;       /* since 0: nothing is being measured */
    uint64_t bytes;
    double bytes_s;                   /* of the last measurement; 0: none, or it was taken away */
    int measured;                     /* whom it is about */
};

/* These bytes go to this peer now. */
void link_meter_sent(struct link_meter *m, int peer, uint64_t bytes);
/* After sends to this peer: does more wait for room? */
void link_meter_look(struct link_meter *m, int peer, bool held_up, uint64_t now_ns);

#endif
