/* engine/cpu/attend_avx512_bf16.c - see attend_avx512_bf16.h; only F16's arithmetic is its own. */
#include "engine/cpu/attend_avx512_bf16.h"
#include "engine/cpu/simd_attend.h"

void attend_avx512_bf16(const struct kv_view *kv, uint32_t tile, const float *const *queries,
                        const uint32_t *visible, uint32_t count, struct partial *out, float *room)
{
    attend_tile(kv, tile, queries, visible, count, out, room);
}
