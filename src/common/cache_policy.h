/* common/cache_policy.h - the part of the settings that may change while a job runs.
 *
 * What a CachePolicy document says, as options (config_table.c): at start they come like others;
 * later from `rankservectl policy -f`, over HTTP and the link, to rank 0.
 */
#ifndef RANKSERVE_COMMON_CACHE_POLICY_H
#define RANKSERVE_COMMON_CACHE_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "common/config.h"
#include "common/mem.h"

enum { CACHE_POLICY_NAME_BYTES = 24 };

/* Also what crosses the link and goes to the workers.  0: no limit; a worker drops only what nobody
 * uses. */
struct cache_policy {
    uint64_t ttl_ms;                  /* unused for this long: dropped */
    uint32_t entries_max;             /* unused blocks that a worker keeps */
    uint32_t prefix_tokens_max;       /* of a prompt, the leading ones that are kept */
    double memory_threshold;          /* 0 .. 1: share of the pool in use, above it: dropped */
    double cache_locality_weight, latency_weight;
    char policy[CACHE_POLICY_NAME_BYTES], decode_policy[CACHE_POLICY_NAME_BYTES];
};
_Static_assert(sizeof(struct cache_policy) == 88, "wire layout is fixed");

void cache_policy_of(const struct config *c, struct cache_policy *out);
/* False: from elsewhere, and not what cache_policy_read could have made. */
bool cache_policy_valid(const struct cache_policy *p);
/* `name = value` lines: options of the policy, and `selector = k=v,...`, which `labels` must have.
 * What is not named is as when nothing was ever said.  ERR_STALE: the selector does not match. */
enum err cache_policy_read(struct cache_policy *out, const char *labels, const char *text,
                           size_t bytes, struct why *why);
/* Calls back for each of them that differs from its default in *c. */
void cache_policy_each(const struct config *c, void *ctx,
                       void (*call)(void *ctx, const char *name, const char *value));
/* Has `labels` ("k=v,k=v") every pair of `selector`? */
bool cache_policy_selects(const char *selector, const char *labels);

#endif
