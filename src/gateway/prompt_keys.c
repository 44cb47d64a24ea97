/* gateway/prompt_keys.c - see prompt_keys.h. */
#include "gateway/prompt_keys.h"

#include "common/clock.h"

#define LOOK_NS (5 * NS_PER_MS)       /* of all prompts of a request */

void prompt_keys_make(struct api_request *r, const struct link_keys *k)
{
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        struct api_prompt *p = &r->prompts[i];
        if (p->ids.count <= k->scope.block_tokens) continue;
        p->key_count = (uint32_t)((p->ids.count - 1) / k->scope.block_tokens);
        p->keys = mem_array(p->key_count, sizeof *p->keys);
        kv_key_chain(k->secret, &k->scope, r->cache_salt, p->ids.ids, p->key_count, p->keys);
    }
}

void prompt_keys_look(struct gateway *gw, struct api_request *r, const struct link_keys *k)
{
    struct shared_view_job jobs[JOBS_MAX];
    uint32_t numbers[JOBS_MAX], blocks[JOBS_MAX];
    if (!gw->view) return;
    pthread_mutex_lock(&gw->lock);
    uint32_t count = link_client_holders(gw->link, k, jobs, numbers);
    pthread_mutex_unlock(&gw->lock);
    if (count < 2) return;            /* nothing to choose */
    uint64_t now = clock_now_ns(), until = now + LOOK_NS;
    for (uint32_t i = 0; i < r->prompt_count && now < until; i++, now = clock_now_ns()) {
        struct api_prompt *p = &r->prompts[i];
        if (p->key_count == 0) continue;
        shared_view_look(gw->view, p->keys, p->key_count, jobs, count, until - now, blocks);
        for (uint32_t j = 0; j < count; j++) {
            p->held[numbers[j]] = blocks[j] * k->scope.block_tokens;
        }
    }
}
