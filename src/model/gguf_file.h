/* model/gguf_file.h - the index of an open GGUF file: shared by gguf.c (reads it) and gguf_value.c
 * (answers from it), and by nobody else. */
#ifndef RANKSERVE_MODEL_GGUF_FILE_H
#define RANKSERVE_MODEL_GGUF_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/hash.h"
#include "model/gguf.h"

/* Values as in the file. */
enum gguf_kind {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_TEXT,
    GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64,
    GGUF_KIND_COUNT
};

struct gguf_key {
    char *name;                       /* owned */
    enum gguf_kind kind;              /* of one element when is_array; never GGUF_ARRAY */
    bool is_array;
    uint64_t count;                   /* elements; 1 when not an array */
    uint64_t at;                      /* offset of the first element   */
};

/* Open addressing: position + 1 of a name's owner, 0 when empty. */
struct gguf_table {
    uint32_t *slots;
    uint32_t mask;
};

struct gguf {
    const uint8_t *image;
    uint64_t bytes;
    bool mapped;                      /* image is ours to unmap */
    struct gguf_key *keys;
    uint32_t key_count;
    struct gguf_tensor *tensors;
    uint32_t tensor_count;
    struct gguf_table key_table, tensor_table;
    struct hash_secret secret;        /* of the tables: a crafted file cannot make them slow */
};

/* Bytes of one element; 0 for texts and arrays, which have no fixed size. */
uint32_t gguf_kind_bytes(enum gguf_kind kind);
const struct gguf_key *gguf_key_find(const struct gguf *g, const char *name); /* or NULL */

#endif
