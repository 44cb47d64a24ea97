/* gateway/wishes.h - what a request's headers say of its turn: priority, user, targets, time limit.
 *
 *   Priority: high | normal | low | N      as the field `priority` (which wins): lower is earlier
 *   x-llm-d-inference-fairness-id          whose turn it counts as, instead of the field `user`
 *   x-llm-d-slo-ttft-ms, x-llm-d-slo-tpot-ms   wanted times to the first token, and between two
 *   x-envoy-upstream-rq-timeout-ms         as the field `timeout` (which wins)
 */
#ifndef RANKSERVE_GATEWAY_WISHES_H
#define RANKSERVE_GATEWAY_WISHES_H

#include "gateway/api.h"

struct wishes {                       /* headers; NULL: absent */
    const char *priority, *fairness_id, *ttft, *tpot, *timeout;
    const char *api_key;              /* the Authorization header, when keys are asked for */
};

/* Fills priority, user_hash, timeout_s and targets of r.  False: *e says which header is wrong. */
bool wishes_read(const struct wishes *w, struct api_request *r, struct api_error *e);

#endif
