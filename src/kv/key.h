/* kv/key.h - the identity of a full KV block: a chained, keyed hash of the tokens up to its end.
 *
 *   root   = H(secret; model digest, KV type, block size, cache_salt)
 *   key[i] = H(secret; key[i-1], ids of block i as little-endian int32)
 *
 * H is SipHash-2-4-128.  Gateway, ranks and the shared view compute the same keys.  Equal keys are
 * a hint, not a proof: whoever reuses a block also compares its ids.
 */
#ifndef RANKSERVE_KV_KEY_H
#define RANKSERVE_KV_KEY_H

#include <stdint.h>

#include "common/hash.h"

struct kv_scope {                     /* what must be equal for blocks to be exchangeable */
    struct hash128 model_digest;
    uint32_t kv_type;                 /* enum kv_type of engine/backend.h */
    uint32_t block_tokens;
};

struct hash128 kv_key_root(struct hash_secret secret, const struct kv_scope *scope, uint64_t salt);
struct hash128 kv_key_next(struct hash_secret secret, struct hash128 parent, const int32_t *ids,
                           uint32_t block_tokens);
/* The keys of the first `count` full blocks of ids. */
void kv_key_chain(struct hash_secret secret, const struct kv_scope *scope, uint64_t salt,
                  const int32_t *ids, uint32_t count, struct hash128 *keys);

#endif
