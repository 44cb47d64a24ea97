/* gateway/overlap.h - which job was sent which beginnings of prompts: a bounded memory.
 *
 * A prompt's blocks have chained keys, so that equal keys mean equal beginnings.  Each key knows
 * the jobs (bits) that were sent it; the oldest keys make room.  It guides where a request goes,
 * and may be wrong: what a job holds only the job knows.  Under the gateway's lock.
 */
#ifndef RANKSERVE_GATEWAY_OVERLAP_H
#define RANKSERVE_GATEWAY_OVERLAP_H

#include <stdint.h>

#include "common/limits.h"

enum { OVERLAP_BLOCK_TOKENS = 16, OVERLAP_BLOCKS_MAX = 1024, OVERLAP_KEYS = 1 << 16 };

struct overlap;

struct overlap *overlap_open(void);
void overlap_close(struct overlap *o);

/* Tokens at the beginning of `ids` that each job was sent before. */
void overlap_look(const struct overlap *o, uint64_t salt, const int32_t *ids, uint32_t count,
                  uint32_t tokens_out[JOBS_MAX]);
/* The job is about to be sent them. */
void overlap_add(struct overlap *o, uint64_t salt, const int32_t *ids, uint32_t count,
                 uint32_t job);
void overlap_forget(struct overlap *o, uint32_t job);

#endif
