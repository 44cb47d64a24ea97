/* model/quant.h - the block formats of GGUF tensors, and turning them into floats.
 *
 * Layouts follow ggml's block_q* structs (public format).  32 values a block for Q4_0 Q4_1 Q5_0
 * Q5_1 Q8_0, 256 for the K types.  In Q4_0 and Q4_1, byte j holds value j in its low nibble and
 * value j+16 in its high one.  Scales are F16.
 */
#ifndef RANKSERVE_MODEL_QUANT_H
#define RANKSERVE_MODEL_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/gguf.h"

struct block_q4_0 { uint16_t d; uint8_t q[16]; };                 /* w = d*(q-8)     */
struct block_q4_1 { uint16_t d, m; uint8_t q[16]; };              /* w = d*q + m     */
struct block_q5_0 { uint16_t d; uint8_t high[4]; uint8_t q[16]; };
struct block_q5_1 { uint16_t d, m; uint8_t high[4]; uint8_t q[16]; };
struct block_q8_0 { uint16_t d; int8_t q[32]; };                  /* w = d*q         */
_Static_assert(sizeof(struct block_q4_0) == 18, "file layout");
_Static_assert(sizeof(struct block_q4_1) == 20, "file layout");
_Static_assert(sizeof(struct block_q5_0) == 22, "file layout");
_Static_assert(sizeof(struct block_q5_1) == 24, "file layout");
_Static_assert(sizeof(struct block_q8_0) == 34, "file layout");

/* The K types: 256 values in parts of 32 (Q6_K: 16), each part with its own small scale.
 * Q4_K, Q5_K: w = d*scale*q - dmin*min; scales and mins are 6 bits each, see quant_scale_min_k4.
 * Q6_K: w = d*scale*(q-32). */
struct block_q4_k { uint16_t d, dmin; uint8_t scales[12]; uint8_t q[128]; };
struct block_q5_k { uint16_t d, dmin; uint8_t scales[12]; uint8_t high[32]; uint8_t q[128]; };
struct block_q6_k { uint8_t low[128]; uint8_t high[64]; int8_t scales[16]; uint16_t d; };
_Static_assert(sizeof(struct block_q4_k) == 144, "file layout");
_Static_assert(sizeof(struct block_q5_k) == 176, "file layout");
_Static_assert(sizeof(struct block_q6_k) == 210, "file layout");

const char *tensor_type_name(enum tensor_type t);      /* "Q4_1"; "?" when unknown       */
bool tensor_type_known(uint32_t t);
uint32_t tensor_block_values(enum tensor_type t);      /* 1, 32 or 256                   */
uint32_t tensor_block_bytes(enum tensor_type t);
/* Can this build compute with it?  (The reader knows more types than the engine.) */
bool tensor_type_computable(enum tensor_type t);

/* Scale and min of part i (0..7) of a Q4_K or Q5_K block. */
static inline void quant_scale_min_k4(const uint8_t s[12], int i, unsigned *scale, unsigned *min)
{
    if (i < 4) {
        *scale = s[i] & 63u;
        *min = s[i + 4] & 63u;
    } else {
        *scale = (s[i + 4] & 15u) | (unsigned)(s[i - 4] >> 6) << 4;
        *min = (unsigned)(s[i + 4] >> 4) | (unsigned)(s[i] >> 6) << 4;
    }
}

float half_to_float(uint16_t h);
uint16_t float_to_half(float f);                       /* round to nearest even          */
float bf16_to_float(uint16_t b);

/* `count` values, a whole number of blocks, into out.  The exact dequantisation of the format. */
void tensor_dequantize(enum tensor_type t, const void *blocks, float *out, size_t count);

#endif
