/* tests/unit/gguf_writer.h - builds a small GGUF file in memory, for tests.
 *
 *   struct gguf_writer w = { 0 };
 *   writer_key_text(&w, "general.architecture", "llama");
 *   writer_tensor(&w, "token_embd.weight", TENSOR_F32, 2, (uint64_t[]){ 8, 32 }, values, bytes);
 *   writer_finish(&w);                  w.image.data, w.image.size is the file
 *   writer_release(&w);
 *
 * Writes whatever it is told, also what a reader must refuse.
 */
#ifndef RANKSERVE_TESTS_GGUF_WRITER_H
#define RANKSERVE_TESTS_GGUF_WRITER_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "common/mem.h"
#include "model/gguf.h"

struct gguf_writer {
    struct buf keys, tensors, data;      /* the three parts, until writer_finish joins them */
    uint64_t key_count, tensor_count;
    uint32_t alignment;                  /* 0: 32, and no key is written for it */
    uint32_t version;                    /* 0: 3 */
    struct buf image;
};

/* Value kinds as in the file. */
enum { WRITER_U32 = 4, WRITER_I32 = 5, WRITER_F32 = 6, WRITER_BOOL = 7, WRITER_TEXT = 8,
       WRITER_ARRAY = 9 };

static inline void writer_u32(struct buf *b, uint32_t value)
{
    buf_add(b, &value, sizeof value);
}

static inline void writer_u64(struct buf *b, uint64_t value)
{
    buf_add(b, &value, sizeof value);
}

static inline void writer_text_n(struct buf *b, const char *text, size_t bytes)
{
    writer_u64(b, bytes);
    buf_add(b, text, bytes);
}

static inline void writer_text(struct buf *b, const char *text)
{
    writer_text_n(b, text, strlen(text));
}

/* A key of any kind, its value as raw bytes. */
static inline void writer_key(struct gguf_writer *w, const char *key, uint32_t kind,
                              const void *value, size_t bytes)
{
    writer_text(&w->keys, key);
    writer_u32(&w->keys, kind);
    buf_add(&w->keys, value, bytes);
    w->key_count++;
}

static inline void writer_key_u32(struct gguf_writer *w, const char *key, uint32_t value)
{
    writer_key(w, key, WRITER_U32, &value, sizeof value);
}

static inline void writer_key_f32(struct gguf_writer *w, const char *key, float value)
{
    writer_key(w, key, WRITER_F32, &value, sizeof value);
}

static inline void writer_key_bool(struct gguf_writer *w, const char *key, bool value)
{
    uint8_t byte = value;
    writer_key(w, key, WRITER_BOOL, &byte, sizeof byte);
}

static inline void writer_key_text(struct gguf_writer *w, const char *key, const char *value)
{
    writer_key(w, key, WRITER_TEXT, NULL, 0);
    writer_text(&w->keys, value);
}

static inline void writer_key_array(struct gguf_writer *w, const char *key, uint32_t kind,
                                    uint64_t count)
{
    writer_key(w, key, WRITER_ARRAY, NULL, 0);
    writer_u32(&w->keys, kind);
    writer_u64(&w->keys, count);
}

static inline void writer_key_texts(struct gguf_writer *w, const char *key,
                                    const char *const *texts, uint64_t count)
{
    writer_key_array(w, key, WRITER_TEXT, count);
    for (uint64_t i = 0; i < count; i++) writer_text(&w->keys, texts[i]);
}

static inline void writer_key_i32s(struct gguf_writer *w, const char *key, const int32_t *values,
                                   uint64_t count)
{
    writer_key_array(w, key, WRITER_I32, count);
    buf_add(&w->keys, values, count * sizeof *values);
}

static inline void writer_key_f32s(struct gguf_writer *w, const char *key, const float *values,
                                   uint64_t count)
{
    writer_key_array(w, key, WRITER_F32, count);
    buf_add(&w->keys, values, count * sizeof *values);
}

static inline void writer_pad(struct buf *b, size_t alignment)
{
    while (b->size % alignment) buf_char(b, '\0');
}

/* A tensor's entry with an offset of the caller's choice; adds no data. */
static inline void writer_tensor_entry(struct gguf_writer *w, const char *name, uint32_t type,
                                       uint32_t dim_count, const uint64_t *dims, uint64_t offset)
{
    writer_text(&w->tensors, name);
    writer_u32(&w->tensors, dim_count);
    buf_add(&w->tensors, dims, dim_count * sizeof *dims);
    writer_u32(&w->tensors, type);
    writer_u64(&w->tensors, offset);
    w->tensor_count++;
}

/* A tensor and its bytes; `data` may be NULL for zeros. */
static inline void writer_tensor(struct gguf_writer *w, const char *name, uint32_t type,
                                 uint32_t dim_count, const uint64_t *dims, const void *data,
                                 size_t bytes)
{
    writer_pad(&w->data, w->alignment ? w->alignment : 32);
    writer_tensor_entry(w, name, type, dim_count, dims, w->data.size);
    if (data) {
        buf_add(&w->data, data, bytes);
    } else {
        for (size_t i = 0; i < bytes; i++) buf_char(&w->data, '\0');
    }
}

static inline void writer_finish(struct gguf_writer *w)
{
    struct buf *b = &w->image;
    if (w->alignment) writer_key_u32(w, "general.alignment", w->alignment);
    buf_clear(b);
    buf_add(b, "GGUF", 4);
    writer_u32(b, w->version ? w->version : 3);
    writer_u64(b, w->tensor_count);
    writer_u64(b, w->key_count);
    buf_add(b, w->keys.data, w->keys.size);
    buf_add(b, w->tensors.data, w->tensors.size);
    if (w->tensor_count) writer_pad(b, w->alignment ? w->alignment : 32);
    buf_add(b, w->data.data, w->data.size);
}

static inline void writer_release(struct gguf_writer *w)
{
    buf_release(&w->keys);
    buf_release(&w->tensors);
    buf_release(&w->data);
    buf_release(&w->image);
}

#endif
