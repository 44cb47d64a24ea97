/* gateway/soon.h - whether an answer that is under way is worth waiting for awake.
 *
 * Who sleeps until a message comes runs some 15 us after it, 35 on a virtual machine whose
 * processor had to leave its halt.  Where a lone request's answer comes within SOON_NS, as the last
 * SOON_PROOFS did, that is a good part of it, and the gateway looks for it again and again instead.
 * Engines that take longer never see this.  Pure: no clock, no lock.
 */
#ifndef RANKSERVE_GATEWAY_SOON_H
#define RANKSERVE_GATEWAY_SOON_H

#include <stdint.h>

enum { SOON_NS = 400000, SOON_PROOFS = 4 };

struct soon {
    uint64_t stream;                  /* what is waited for; 0: nothing */
    uint64_t asked_ns;
    uint32_t proofs;                  /* so many in a row came within SOON_NS */
};

/* `stream` (never 0) was asked for, and nothing else is under way. */
void soon_asked(struct soon *s, uint64_t stream, uint64_t now_ns);
/* The first that is heard of any stream; others than the one asked for count for nothing. */
void soon_came(struct soon *s, uint64_t stream, uint64_t now_ns);
/* Until when to look for it awake; 0: sleep. */
uint64_t soon_until_ns(const struct soon *s);

#endif
