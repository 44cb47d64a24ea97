/* tests/cuda/peek.c - a look into the CPU backend, whose names are those of cuda/cuda.h. */
#include "engine/cpu/cpu.h"

const float *peek_cpu_logits(const void *self, uint32_t row);

const float *peek_cpu_logits(const void *self, uint32_t row)
{
    const struct cpu *u = self;
    return u->logits + (uint64_t)(row % u->logit_rows_max) * u->logit_stride;
}
