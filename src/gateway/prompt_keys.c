/* gateway/prompt_keys.c - see prompt_keys.h. */
#include "gateway/prompt_keys.h"

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
