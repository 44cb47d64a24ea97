/* kv/key.c - see key.h.  What is hashed is laid out here, and nowhere else. */
#include "kv/key.h"

#include <string.h>

#include "common/check.h"
#include "common/limits.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "keys hash little-endian bytes");

struct root_bytes {
    struct hash128 model_digest;
    uint32_t kv_type, block_tokens;
    uint64_t salt;
};
_Static_assert(sizeof(struct root_bytes) == 32, "no padding is hashed");

struct next_bytes {
    struct hash128 parent;
    int32_t ids[KV_BLOCK_TOKENS_MAX];
};

struct hash128 kv_key_root(struct hash_secret secret, const struct kv_scope *scope, uint64_t salt)
{
    struct root_bytes b = {
        .model_digest = scope->model_digest,
        .kv_type = scope->kv_type,
        .block_tokens = scope->block_tokens,
        .salt = salt,
    };
    return hash_sip128(secret, &b, sizeof b);
}

struct hash128 kv_key_next(struct hash_secret secret, struct hash128 parent, const int32_t *ids,
                           uint32_t block_tokens)
{
    CHECK(block_tokens <= KV_BLOCK_TOKENS_MAX);
    struct next_bytes b;
    b.parent = parent;
    memcpy(b.ids, ids, block_tokens * sizeof *ids);
    return hash_sip128(secret, &b, sizeof b.parent + block_tokens * sizeof *ids);
}

void kv_key_chain(struct hash_secret secret, const struct kv_scope *scope, uint64_t salt,
                  const int32_t *ids, uint32_t count, struct hash128 *keys)
{
    struct hash128 parent = kv_key_root(secret, scope, salt);
    for (uint32_t i = 0; i < count; i++) {
        parent = kv_key_next(secret, parent, ids + (size_t)i * scope->block_tokens,
                             scope->block_tokens);
        keys[i] = parent;
    }
}
