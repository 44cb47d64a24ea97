/* engine/isa.c - which instruction set the kernels use; see backend.h.
 *
 * ISA_AVX512 needs VNNI: without it the 8-bit dot products would be slower than AVX2's.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/backend.h"

static const char *const names[ISA_COUNT] = {
    [ISA_PLAIN] = "plain", [ISA_AVX2] = "avx2", [ISA_AVX512] = "avx512",
    [ISA_AVX512_BF16] = "avx512_bf16",
};

static enum isa isa_of_cpu(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return ISA_PLAIN;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
        return __builtin_cpu_supports("avx512bf16") ? ISA_AVX512_BF16 : ISA_AVX512;
    }
    return ISA_AVX2;
#else
    return ISA_PLAIN;
#endif
}

enum err isa_find(enum isa *out, struct why *why)
{
    const char *wanted = getenv("RANKSERVE_ISA");
    *out = isa_of_cpu();
    if (!wanted || !*wanted) return OK;
    for (int i = 0; i < ISA_COUNT; i++) {
        if (strcmp(wanted, names[i]) != 0) continue;
        if ((enum isa)i < *out) *out = (enum isa)i;
        return OK;
    }
    return why_set(why, ERR_FORMAT, "RANKSERVE_ISA is '%.40s': it must be plain, avx2, avx512 or "
                   "avx512_bf16", wanted);
}

enum isa isa_best(void)
{
    enum isa best;
    struct why why;
    if (isa_find(&best, &why)) die("%s", why.text);
    return best;
}

const char *isa_name(enum isa isa)
{
    CHECK((unsigned)isa < ISA_COUNT);
    return names[isa];
}
