/* gateway/metrics.h - counters and histograms, and their text in Prometheus' format.
 *
 * What rank 0 knows comes from the link's STATE messages; what only the gateway sees (requests,
 * latencies as clients feel them) is counted here.  Owner: the gateway, under its lock.
 */
#ifndef RANKSERVE_GATEWAY_METRICS_H
#define RANKSERVE_GATEWAY_METRICS_H

#include <stdint.h>

#include "common/mem.h"
#include "gateway/prefix_store.h"
#include "kv/shared_view.h"
#include "wire/link.h"

struct metrics;

struct metrics *metrics_open(void);
void metrics_close(struct metrics *m);

/* One request for generation was answered; finish FINISH_NONE: refused before it ran. */
void metrics_request(struct metrics *m, int status, enum finish finish, double seconds);
/* One choice ended. */
void metrics_choice(struct metrics *m, enum finish finish, uint32_t prompt, uint32_t cached,
                    uint32_t output);
void metrics_first_token(struct metrics *m, double seconds);
void metrics_next_token(struct metrics *m, double seconds, uint64_t now_ns);
void metrics_state(struct metrics *m, const struct link_state *s, uint64_t now_ns);
void metrics_link_lost(struct metrics *m);

void metrics_write_store(const struct prefix_store_stats *s, const char *model, struct buf *out);
/* Of the jobs (as their states say) and, unless NULL, of the gateway's own looks. */
void metrics_write_view(const struct metrics *m, const struct shared_view_stats *s,
                        const char *model, struct buf *out);
void metrics_write(const struct metrics *m, const char *model, uint64_t now_ns, struct buf *out);

#endif
