/* common/hash.h - SipHash-2-4 with a 128-bit result, and comparing secrets.
 *
 * SipHash (Aumasson and Bernstein, 2012) is a keyed pseudo-random function: it makes the keys of
 * KV blocks unpredictable to tenants, and serves as the MAC of the link's challenge-response.
 */
#ifndef RANKSERVE_COMMON_HASH_H
#define RANKSERVE_COMMON_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hash128 {
    uint64_t lo, hi;
};
struct hash_secret {
    uint64_t k0, k1;
};

struct hash128 hash_sip128(struct hash_secret secret, const void *data, size_t bytes);
static inline bool hash_equal(struct hash128 a, struct hash128 b)
{
    return a.lo == b.lo && a.hi == b.hi;
}

/* Takes the same time wherever the first difference is. */
bool secret_equal(const void *a, const void *b, size_t bytes);
/* Fills from the kernel's generator; dies when that fails. */
void secret_random(void *out, size_t bytes);

#endif
