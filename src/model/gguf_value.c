/* model/gguf_value.c - the values of a GGUF file's keys; see gguf.h.
 *
 * Bounds were checked when the file was opened (gguf.c); here only kinds and ranges are.
 */
#include <inttypes.h>
#include <string.h>

#include "common/mem.h"
#include "model/gguf.h"
#include "model/gguf_file.h"

enum { PRINT_TEXT_BYTES = 64, PRINT_ELEMENTS = 4 };

uint32_t gguf_kind_bytes(enum gguf_kind kind)
{
    switch (kind) {
    case GGUF_U8: case GGUF_I8: case GGUF_BOOL: return 1;
    case GGUF_U16: case GGUF_I16: return 2;
    case GGUF_U32: case GGUF_I32: case GGUF_F32: return 4;
    case GGUF_U64: case GGUF_I64: case GGUF_F64: return 8;
    case GGUF_TEXT: case GGUF_ARRAY: case GGUF_KIND_COUNT: break;
    }
    return 0;
}

static bool is_integer(enum gguf_kind kind)
{
    return gguf_kind_bytes(kind) && kind != GGUF_F32 && kind != GGUF_F64 && kind != GGUF_BOOL;
}

static bool is_signed(enum gguf_kind kind)
{
    return kind == GGUF_I8 || kind == GGUF_I16 || kind == GGUF_I32 || kind == GGUF_I64;
}

/* A number of the file; negative ones come out sign-extended. */
static uint64_t read_integer(const uint8_t *from, enum gguf_kind kind)
{
    uint64_t value = 0;
    unsigned bits = gguf_kind_bytes(kind) * 8;
    memcpy(&value, from, bits / 8);
    if (is_signed(kind) && bits < 64 && value >> (bits - 1)) value |= UINT64_MAX << bits;
    return value;
}

static double read_float(const uint8_t *from, enum gguf_kind kind)
{
    float f;
    double d;
    if (kind == GGUF_F64) {
        memcpy(&d, from, sizeof d);
        return d;
    }
    memcpy(&f, from, sizeof f);
    return (double)f;
}

static struct gguf_text read_text(const uint8_t *from)
{
    struct gguf_text text = { .data = (const char *)from + 8 };
    memcpy(&text.bytes, from, 8);
    return text;
}

static const struct gguf_key *find_one(const struct gguf *g, const char *name)
{
    const struct gguf_key *key = gguf_key_find(g, name);
    return key && !key->is_array ? key : NULL;
}

static const struct gguf_key *find_array(const struct gguf *g, const char *name)
{
    const struct gguf_key *key = gguf_key_find(g, name);
    return key && key->is_array ? key : NULL;
}

bool gguf_has_key(const struct gguf *g, const char *name)
{
    return gguf_key_find(g, name) != NULL;
}

bool gguf_get_u32(const struct gguf *g, const char *name, uint32_t *out)
{
    const struct gguf_key *key = find_one(g, name);
    if (!key || !is_integer(key->kind)) return false;
    uint64_t value = read_integer(g->image + key->at, key->kind);
    if (value > UINT32_MAX) return false;
    *out = (uint32_t)value;
    return true;
}

bool gguf_get_f32(const struct gguf *g, const char *name, float *out)
{
    const struct gguf_key *key = find_one(g, name);
    if (!key || (key->kind != GGUF_F32 && key->kind != GGUF_F64)) return false;
    double value = read_float(g->image + key->at, key->kind);
    if (value > (double)3.402823466e38f || value < -(double)3.402823466e38f) return false;
    *out = (float)value;
    return true;
}

bool gguf_get_bool(const struct gguf *g, const char *name, bool *out)
{
    const struct gguf_key *key = find_one(g, name);
    if (!key || key->kind != GGUF_BOOL || g->image[key->at] > 1) return false;
    *out = g->image[key->at] == 1;
    return true;
}

bool gguf_get_text(const struct gguf *g, const char *name, struct gguf_text *out)
{
    const struct gguf_key *key = find_one(g, name);
    if (!key || key->kind != GGUF_TEXT) return false;
    *out = read_text(g->image + key->at);
    return true;
}

uint64_t gguf_array_count(const struct gguf *g, const char *name)
{
    const struct gguf_key *key = find_array(g, name);
    return key ? key->count : 0;
}

bool gguf_array_texts(const struct gguf *g, const char *name, struct gguf_text *out)
{
    const struct gguf_key *key = find_array(g, name);
    if (!key || key->kind != GGUF_TEXT) return false;
    const uint8_t *from = g->image + key->at;
    for (uint64_t i = 0; i < key->count; i++) {
        out[i] = read_text(from);
        from += 8 + out[i].bytes;
    }
    return true;
}

bool gguf_array_u32(const struct gguf *g, const char *name, uint32_t *out)
{
    const struct gguf_key *key = find_array(g, name);
    if (!key || !is_integer(key->kind)) return false;
    uint32_t bytes = gguf_kind_bytes(key->kind);
    for (uint64_t i = 0; i < key->count; i++) {
        uint64_t value = read_integer(g->image + key->at + i * bytes, key->kind);
        if (value > UINT32_MAX) return false;
        out[i] = (uint32_t)value;
    }
    return true;
}

bool gguf_array_f32(const struct gguf *g, const char *name, float *out)
{
    const struct gguf_key *key = find_array(g, name);
    if (!key || (key->kind != GGUF_F32 && key->kind != GGUF_F64)) return false;
    uint32_t bytes = gguf_kind_bytes(key->kind);
    for (uint64_t i = 0; i < key->count; i++) {
        out[i] = (float)read_float(g->image + key->at + i * bytes, key->kind);
    }
    return true;
}

uint32_t gguf_key_count(const struct gguf *g)
{
    return g->key_count;
}

const char *gguf_key_at(const struct gguf *g, uint32_t i)
{
    CHECK(i < g->key_count);
    return g->keys[i].name;
}

/* Quoted, cut, control bytes escaped: safe on a terminal.  A character is never cut in two. */
static void print_text(struct gguf_text text, struct buf *out)
{
    uint64_t shown = text.bytes;
    if (shown > PRINT_TEXT_BYTES) {
        shown = PRINT_TEXT_BYTES;
        while (shown > PRINT_TEXT_BYTES - 4 && ((uint8_t)text.data[shown] & 0xc0) == 0x80) shown--;
    }
    buf_char(out, '"');
    for (uint64_t i = 0; i < shown; i++) {
        uint8_t byte = (uint8_t)text.data[i];
        if (byte == '\n') {
            buf_text(out, "\\n");
        } else if (byte < 0x20 || byte == 0x7f) {
            buf_print(out, "\\x%02x", byte);
        } else {
            if (byte == '"' || byte == '\\') buf_char(out, '\\');
            buf_char(out, (char)byte);
        }
    }
    buf_text(out, shown < text.bytes ? "\"..." : "\"");
}

/* Prints one element and returns where the next one is. */
static const uint8_t *print_one(const uint8_t *from, enum gguf_kind kind, struct buf *out)
{
    if (kind == GGUF_TEXT) {
        struct gguf_text text = read_text(from);
        print_text(text, out);
        return from + 8 + text.bytes;
    }
    if (kind == GGUF_BOOL) {
        buf_text(out, *from ? "true" : "false");
    } else if (is_signed(kind)) {
        buf_print(out, "%" PRId64, (int64_t)read_integer(from, kind));
    } else if (is_integer(kind)) {
        buf_print(out, "%" PRIu64, read_integer(from, kind));
    } else {
        buf_print(out, "%.9g", read_float(from, kind));
    }
    return from + gguf_kind_bytes(kind);
}

void gguf_key_print(const struct gguf *g, uint32_t i, struct buf *out)
{
    CHECK(i < g->key_count);
    const struct gguf_key *key = &g->keys[i];
    const uint8_t *from = g->image + key->at;
    if (!key->is_array) {
        print_one(from, key->kind, out);
        return;
    }
    buf_print(out, "%" PRIu64 " values:", key->count);
    for (uint64_t n = 0; n < key->count && n < PRINT_ELEMENTS; n++) {
        buf_text(out, n ? ", " : " ");
        from = print_one(from, key->kind, out);
    }
    if (key->count > PRINT_ELEMENTS) buf_text(out, ", ...");
}
