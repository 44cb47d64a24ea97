/* common/splitmix.h - a small pseudo-random generator: splitmix64 (Steele, Lea and Flood, 2014).
 *
 * For simulations, ties and measurements, whose runs are to repeat: one 64-bit state, any seed, and
 * each of the 2^64 values once.  Never for what nobody may guess: that is secret_random.
 */
#ifndef RANKSERVE_COMMON_SPLITMIX_H
#define RANKSERVE_COMMON_SPLITMIX_H

#include <stdint.h>

static inline uint64_t splitmix_next(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* In [0, 1), a multiple of 2^-53. */
static inline double splitmix_unit(uint64_t *state)
{
    return (double)(splitmix_next(state) >> 11) * 0x1p-53;
}

#endif
