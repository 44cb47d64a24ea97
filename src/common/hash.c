/* common/hash.c - SipHash-2-4-128; see hash.h. */
#include "common/hash.h"

#include <string.h>
#include <sys/random.h>

#include "common/check.h"

struct sip {
    uint64_t v0, v1, v2, v3;
};

static uint64_t rotate(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static void sip_round(struct sip *s)
{
    s->v0 += s->v1;
    s->v1 = rotate(s->v1, 13) ^ s->v0;
    s->v0 = rotate(s->v0, 32);
    s->v2 += s->v3;
    s->v3 = rotate(s->v3, 16) ^ s->v2;
    s->v0 += s->v3;
    s->v3 = rotate(s->v3, 21) ^ s->v0;
    s->v2 += s->v1;
    s->v1 = rotate(s->v1, 17) ^ s->v2;
    s->v2 = rotate(s->v2, 32);
}

static void sip_word(struct sip *s, uint64_t word)
{
    s->v3 ^= word;
    sip_round(s);
    sip_round(s);
    s->v0 ^= word;
}

static uint64_t sip_finish(struct sip *s)
{
    for (int i = 0; i < 4; i++) sip_round(s);
    return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

struct hash128 hash_sip128(struct hash_secret secret, const void *data, size_t bytes)
{
    struct sip s = {
        .v0 = secret.k0 ^ UINT64_C(0x736f6d6570736575),
        .v1 = secret.k1 ^ UINT64_C(0x646f72616e646f6d) ^ 0xee,
        .v2 = secret.k0 ^ UINT64_C(0x6c7967656e657261),
        .v3 = secret.k1 ^ UINT64_C(0x7465646279746573),
    };
    const unsigned char *at = data;
    size_t left = bytes;
    for (; left >= 8; at += 8, left -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        sip_word(&s, word);
    }
    uint64_t last = (uint64_t)bytes << 56;
    for (size_t i = 0; i < left; i++) last |= (uint64_t)at[i] << (8 * i);
    sip_word(&s, last);

    struct hash128 h;
    s.v2 ^= 0xee;
    h.lo = sip_finish(&s);
    s.v1 ^= 0xdd;
    h.hi = sip_finish(&s);
    return h;
}

bool secret_equal(const void *a, const void *b, size_t bytes)
{
    const volatile unsigned char *x = a, *y = b;
    unsigned char differ = 0;
    for (size_t i = 0; i < bytes; i++) differ |= (unsigned char)(x[i] ^ y[i]);
    return differ == 0;
}

void secret_random(void *out, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t got = getrandom((char *)out + at, bytes - at, 0);
        if (got <= 0) die("getrandom failed: no randomness from the kernel");
        at += (size_t)got;
    }
}
