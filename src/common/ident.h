/* common/ident.h - how a request is named inside the job.
 *
 * A slot of rank 0's table, the generation of that slot (never reused while the job lives), and the
 * attempt: a request placed again after a worker was lost is another attempt.  A message whose
 * three numbers do not match what the receiver holds is stale: refused and counted, never acted on.
 */
#ifndef RANKSERVE_COMMON_IDENT_H
#define RANKSERVE_COMMON_IDENT_H

#include <stdbool.h>
#include <stdint.h>

struct req_id {
    uint16_t slot;
    uint16_t attempt;
    uint32_t generation;              /* from 1; 0 names nothing */
};
_Static_assert(sizeof(struct req_id) == 8, "wire layout is fixed");
enum { ATTEMPT_MAX = 0x7fff };        /* the bit above tells pulls: wire/msg.h */

static inline bool req_id_equal(struct req_id a, struct req_id b)
{
    return a.slot == b.slot && a.attempt == b.attempt && a.generation == b.generation;
}

/* What a worker computes. */
enum role { ROLE_BOTH = 1, ROLE_PREFILL = 2, ROLE_DECODE = 3 };

#endif
