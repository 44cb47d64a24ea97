/* model/gguf.h - reads a GGUF file (v2, v3; little-endian) from memory.
 *
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.  The file is mapped read-only,
 * or handed over as bytes (a weights image shared by the ranks of a host).  Nothing is copied but
 * the index of keys and tensors.
 *
 * Always true after a successful open: every key, string, array and tensor lies inside the image,
 * counts are within common/limits.h, tensor types are known, and sizes do not overflow.
 * Not here: what the keys mean (model/hparams.h), what the bytes of a tensor mean (model/quant.h).
 */
#ifndef RANKSERVE_MODEL_GGUF_H
#define RANKSERVE_MODEL_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"

/* Values as in the file. */
enum tensor_type {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q4_0 = 2,
    TENSOR_Q4_1 = 3,
    TENSOR_Q5_0 = 6,
    TENSOR_Q5_1 = 7,
    TENSOR_Q8_0 = 8,
    TENSOR_Q4_K = 12,
    TENSOR_Q5_K = 13,
    TENSOR_Q6_K = 14,
    TENSOR_BF16 = 30,
};

enum { TENSOR_DIMS_MAX = 4 };

struct gguf_tensor {
    const char *name;                 /* NUL-terminated, owned by the gguf          */
    enum tensor_type type;
    uint32_t dim_count;
    uint64_t dims[TENSOR_DIMS_MAX];   /* dims[0] is contiguous: the input dimension */
    const void *data;                 /* inside the image                           */
    uint64_t bytes;
};

struct gguf_text {                    /* not NUL-terminated; may hold any bytes */
    const char *data;
    uint64_t bytes;
};

struct gguf;

/* Maps `path`; on failure `why` says what is wrong and where (key, tensor, offset). */
enum err gguf_open(struct gguf **out, const char *path, struct why *why);
/* Reads from memory that outlives the gguf; `name` is used in messages. */
enum err gguf_open_image(struct gguf **out, const void *image, uint64_t bytes, const char *name,
                         struct why *why);
void gguf_close(struct gguf *g);

const void *gguf_image(const struct gguf *g, uint64_t *bytes_out);

uint32_t gguf_tensor_count(const struct gguf *g);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint32_t i);
const struct gguf_tensor *gguf_tensor_find(const struct gguf *g, const char *name); /* or NULL */

/* Each returns false when the key is absent, of another kind, or out of the result's range.
 * Integer getters accept any integer type of the file; the float getter F32 and F64. */
bool gguf_get_u32(const struct gguf *g, const char *key, uint32_t *out);
bool gguf_get_f32(const struct gguf *g, const char *key, float *out);
bool gguf_get_bool(const struct gguf *g, const char *key, bool *out);
bool gguf_get_text(const struct gguf *g, const char *key, struct gguf_text *out);
bool gguf_has_key(const struct gguf *g, const char *key);   /* of any kind */

/* Arrays: element count, then elements by index.  Zero / false when absent or of another kind. */
uint64_t gguf_array_count(const struct gguf *g, const char *key);
/* All texts of an array into out[0 .. gguf_array_count), caller's storage. */
bool gguf_array_texts(const struct gguf *g, const char *key, struct gguf_text *out);
bool gguf_array_u32(const struct gguf *g, const char *key, uint32_t *out);
bool gguf_array_f32(const struct gguf *g, const char *key, float *out);

/* For `rankservectl inspect`: the name of key i, and its value printed short for a person. */
uint32_t gguf_key_count(const struct gguf *g);
const char *gguf_key_at(const struct gguf *g, uint32_t i);
struct buf;
void gguf_key_print(const struct gguf *g, uint32_t i, struct buf *out);

#endif
