/* mpi/rank0_policy.c - the cache policy: at start from the settings, later from a gateway.
 *
 * Placement changes with the next decision.  Workers are told what their caches may keep; in their
 * settings they have what the job was started with.
 */
#include <string.h>

#include "common/log.h"
#include "mpi/rank0.h"

static enum err names_find(const struct cache_policy *p, enum sched_policy *prefill,
                           uint32_t *decode, struct why *why)
{
    enum sched_policy d;
    if (!sched_policy_find(p->policy, prefill))
        return why_set(why, ERR_FORMAT, "policy: there is no '%s'", p->policy);
    *decode = 0;
    if (strcmp(p->decode_policy, "same") == 0) return OK;
    if (!sched_policy_find(p->decode_policy, &d))
        return why_set(why, ERR_FORMAT, "decode-policy: there is no '%s'", p->decode_policy);
    *decode = d + 1;
    return OK;
}

enum err policy_start(struct rank0 *z, struct sched_config *s, struct why *why)
{
    cache_policy_of(&z->job->config, &z->policy);
    s->cache_locality_weight = z->policy.cache_locality_weight;
    s->latency_weight = z->policy.latency_weight;
    return names_find(&z->policy, &s->policy, &s->decode_policy, why);
}

void policy_tell(struct rank0 *z, int worker)
{
    struct msg_policy m = { .policy = z->policy };
    if (z->policy_changed) port_send_copy(z->port, worker, &m, MSG_POLICY, sizeof m);
}

void policy_change(struct rank0 *z, const struct cache_policy *p)
{
    struct sched_event e = { .type = EV_POLICY, .latency_weight = p->latency_weight,
                             .cache_locality_weight = p->cache_locality_weight };
    struct why why;
    if (names_find(p, &e.policy, &e.decode_policy, &why)) {
        log_warn("%s", why.text);
        return;
    }
    z->policy = *p;
    z->policy_changed = true;
    act_event(z, e);
    for (int i = 1; i < z->job->size; i++)
        if (z->workers[i].alive && z->workers[i].up) policy_tell(z, i);
    log_info("policy name=%s ttl_ms=%llu entries_max=%u prefix_tokens_max=%u threshold=%g",
             p->policy, (unsigned long long)p->ttl_ms, p->entries_max, p->prefix_tokens_max,
             p->memory_threshold);
}
