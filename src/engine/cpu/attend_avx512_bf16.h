/* engine/cpu/attend_avx512_bf16.h - the attention tile for AVX-512 with BF16.
 *
 * It is compiled apart: the other kernels of AVX-512 run without BF16, too.
 */
#ifndef RANKSERVE_ENGINE_CPU_ATTEND_AVX512_BF16_H
#define RANKSERVE_ENGINE_CPU_ATTEND_AVX512_BF16_H

#include "engine/cpu/kernels.h"

/* As `tile` in struct kernels. */
void attend_avx512_bf16(const struct kv_view *kv, uint32_t tile, const float *const *queries,
                        const uint32_t *visible, uint32_t count, struct partial *out, float *room);

#endif
