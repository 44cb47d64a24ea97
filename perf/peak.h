/* perf/peak.h - loops that do nothing but what they measure; one file per instruction set.
 *
 * Each takes a number of rounds and returns the operations done (a multiply and an add are two), or
 * the bytes read.  Results go through an empty asm, so that no compiler removes the work.
 */
#ifndef RANKSERVE_PERF_PEAK_H
#define RANKSERVE_PERF_PEAK_H

#include <stdint.h>

uint64_t peak_int8_avx2(uint64_t rounds);    /* vpmaddubsw, vpmaddwd, vpaddd: any signed weights */
uint64_t peak_int4_avx2(uint64_t rounds);    /* weights of 4 bits: 8 products add in 16 bits     */
uint64_t peak_f32_avx2(uint64_t rounds);
uint64_t peak_read_avx2(const void *at, uint64_t bytes);
/* The same, asking the second cache for what is needed 8 KiB later (reads no further than `bytes`,
 * but asks for 8 KiB behind). */
uint64_t peak_read_ahead_avx2(const void *at, uint64_t bytes);

uint64_t peak_int8_avx512(uint64_t rounds);  /* vpdpbusd */
uint64_t peak_f32_avx512(uint64_t rounds);

#endif
