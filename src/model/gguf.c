/* model/gguf.c - opens a GGUF file and indexes its keys and tensors; see gguf.h.
 *
 * Everything read is checked against the image before it is used; arrays are walked once, to know
 * where they end, and decoded only when somebody asks (gguf_value.c).
 * A file that shrinks while it is mapped ends the program with SIGBUS: replace model files by
 * renaming.
 */
#include "model/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/limits.h"
#include "common/mem.h"
#include "model/gguf_file.h"
#include "model/quant.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are read as they lie");

enum {
    NAME_BYTES_MAX = 65535,           /* of a key, as the format says */
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MAX = 65536,
    KEY_BYTES_MIN = 8 + 4 + 1,        /* the shortest key and tensor: bounds the counts */
    TENSOR_BYTES_MIN = 8 + 4 + 8 + 4 + 8,
};

/* Where reading is, and what is being read, for messages. */
struct cursor {
    struct gguf *g;
    const char *file;
    uint64_t at;
    const char *what;                 /* "header", "key", "tensor" */
    const char *name;                 /* of the key or tensor, NULL until it is read */
    uint32_t index;
    struct why *why;
};

/* "key 'general.name'", or "key 3" before its name is known. */
struct who {
    char text[128];
};
static struct who who(const struct cursor *c)
{
    struct who w;
    if (c->name) {
        snprintf(w.text, sizeof w.text, "%s '%.96s'", c->what, c->name);
    } else if (strcmp(c->what, "header")) {
        snprintf(w.text, sizeof w.text, "%s %" PRIu32, c->what, c->index);
    } else {
        snprintf(w.text, sizeof w.text, "%s", c->what);
    }
    return w;
}

static enum err bad(struct cursor *c, enum err e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static enum err bad(struct cursor *c, enum err e, const char *fmt, ...)
{
    char message[192];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    return why_set(c->why, e, "%.128s: %s: %s", c->file, who(c).text, message);
}

static enum err truncated(struct cursor *c, uint64_t from, uint64_t bytes)
{
    uint64_t to = bytes > UINT64_MAX - from ? UINT64_MAX : from + bytes;
    return why_set(c->why, ERR_FORMAT,
                   "%.128s: truncated: %s needs bytes %" PRIu64 "..%" PRIu64 " of %" PRIu64,
                   c->file, who(c).text, from, to, c->g->bytes);
}

static enum err skip(struct cursor *c, uint64_t bytes)
{
    if (bytes > c->g->bytes - c->at) return truncated(c, c->at, bytes);
    c->at += bytes;
    return OK;
}

static enum err take(struct cursor *c, void *out, uint64_t bytes)
{
    const uint8_t *from = c->g->image + c->at;
    enum err e = skip(c, bytes);
    if (e == OK) memcpy(out, from, bytes);
    return e;
}

/* A copy, which the caller owns.  Names go to logs and terminals: no control bytes. */
static enum err take_name(struct cursor *c, char **out)
{
    uint64_t bytes;
    enum err e = take(c, &bytes, sizeof bytes);
    if (e != OK) return e;
    if (bytes > c->g->bytes - c->at) return truncated(c, c->at, bytes);
    if (bytes == 0 || bytes > NAME_BYTES_MAX) {
        return bad(c, ERR_LIMIT, "its name has %" PRIu64 " bytes, 1..%d expected", bytes,
                   NAME_BYTES_MAX);
    }
    const uint8_t *from = c->g->image + c->at;
    for (uint64_t i = 0; i < bytes; i++) {
        if (from[i] < 0x20 || from[i] == 0x7f) {
            return bad(c, ERR_FORMAT, "its name holds control bytes");
        }
    }
    *out = mem_text_n((const char *)from, bytes);
    c->at += bytes;
    return OK;
}

static enum err skip_texts(struct cursor *c, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t bytes;
        enum err e = take(c, &bytes, sizeof bytes);
        if (e == OK) e = skip(c, bytes);
        if (e != OK) return e;
    }
    return OK;
}

/* Where a name is, or the free slot where it would go. */
static uint32_t *table_slot(const struct gguf *g, const struct gguf_table *t, const char *name,
                            bool keys)
{
    uint32_t i = (uint32_t)hash_sip128(g->secret, name, strlen(name)).lo & t->mask;
    for (;; i = (i + 1) & t->mask) {
        uint32_t owner = t->slots[i];
        if (!owner) return &t->slots[i];
        const char *other = keys ? g->keys[owner - 1].name : g->tensors[owner - 1].name;
        if (!strcmp(other, name)) return &t->slots[i];
    }
}

static void table_make(struct gguf_table *t, uint32_t count)
{
    uint32_t size = 16;
    while (size < 2 * count) size *= 2;
    t->slots = mem_array(size, sizeof *t->slots);
    t->mask = size - 1;
}

const struct gguf_key *gguf_key_find(const struct gguf *g, const char *name)
{
    uint32_t owner = *table_slot(g, &g->key_table, name, true);
    return owner ? &g->keys[owner - 1] : NULL;
}

const struct gguf_tensor *gguf_tensor_find(const struct gguf *g, const char *name)
{
    uint32_t owner = *table_slot(g, &g->tensor_table, name, false);
    return owner ? &g->tensors[owner - 1] : NULL;
}

static enum err read_kind(struct cursor *c, enum gguf_kind *out)
{
    uint32_t kind;
    enum err e = take(c, &kind, sizeof kind);
    if (e != OK) return e;
    if (kind >= GGUF_KIND_COUNT) {
        return bad(c, ERR_FORMAT, "value of unknown kind %" PRIu32, kind);
    }
    *out = (enum gguf_kind)kind;
    return OK;
}

static enum err read_value(struct cursor *c, struct gguf_key *key)
{
    enum err e = read_kind(c, &key->kind);
    if (e != OK) return e;
    key->count = 1;
    key->is_array = key->kind == GGUF_ARRAY;
    if (key->is_array) {
        e = read_kind(c, &key->kind);
        if (e == OK) e = take(c, &key->count, sizeof key->count);
        if (e != OK) return e;
        if (key->kind == GGUF_ARRAY) return bad(c, ERR_UNSUPPORTED, "arrays of arrays");
    }
    key->at = c->at;
    if (key->kind == GGUF_TEXT) return skip_texts(c, key->count);
    uint64_t bytes;
    if (__builtin_mul_overflow(key->count, gguf_kind_bytes(key->kind), &bytes)) {
        bytes = UINT64_MAX;
    }
    return skip(c, bytes);
}

static enum err read_keys(struct cursor *c, uint32_t count)
{
    struct gguf *g = c->g;
    g->keys = mem_array(count, sizeof *g->keys);
    table_make(&g->key_table, count);
    c->what = "key";
    for (c->index = 0; c->index < count; c->index++) {
        c->name = NULL;
        struct gguf_key *key = &g->keys[c->index];
        enum err e = take_name(c, &key->name);
        if (e != OK) return e;
        c->name = key->name;
        g->key_count = c->index + 1;
        uint32_t *slot = table_slot(g, &g->key_table, key->name, true);
        if (*slot) return bad(c, ERR_FORMAT, "is there twice");
        *slot = c->index + 1;
        e = read_value(c, key);
        if (e != OK) return e;
    }
    return OK;
}

/* Counts the bytes of a tensor whose type and dimensions are known. */
static enum err size_tensor(struct cursor *c, struct gguf_tensor *t)
{
    uint64_t values = 1, bytes;
    for (uint32_t i = 0; i < t->dim_count; i++) {
        if (t->dims[i] == 0) return bad(c, ERR_FORMAT, "dimension %" PRIu32 " is 0", i);
        if (__builtin_mul_overflow(values, t->dims[i], &values)) {
            return bad(c, ERR_LIMIT, "more values than can be counted");
        }
    }
    uint32_t block = tensor_block_values(t->type);
    if (t->dims[0] % block) {
        return bad(c, ERR_FORMAT, "rows of %" PRIu64 " values are not whole %s blocks of %" PRIu32,
                   t->dims[0], tensor_type_name(t->type), block);
    }
    if (__builtin_mul_overflow(values / block, tensor_block_bytes(t->type), &bytes)) {
        return bad(c, ERR_LIMIT, "more bytes than can be counted");
    }
    t->bytes = bytes;
    return OK;
}

/* The offset is left in *offset: where it counts from is known after the last tensor. */
static enum err read_tensor(struct cursor *c, struct gguf_tensor *t, uint64_t *offset)
{
    enum err e = take(c, &t->dim_count, sizeof t->dim_count);
    if (e != OK) return e;
    if (t->dim_count < 1 || t->dim_count > TENSOR_DIMS_MAX) {
        return bad(c, ERR_LIMIT, "has %" PRIu32 " dimensions, 1..%d expected", t->dim_count,
                   TENSOR_DIMS_MAX);
    }
    for (uint32_t i = 0; i < TENSOR_DIMS_MAX; i++) t->dims[i] = 1;
    uint32_t type;
    e = take(c, t->dims, t->dim_count * sizeof t->dims[0]);
    if (e == OK) e = take(c, &type, sizeof type);
    if (e == OK) e = take(c, offset, sizeof *offset);
    if (e != OK) return e;
    if (!tensor_type_known(type)) {
        return bad(c, ERR_UNSUPPORTED, "is of unknown type %" PRIu32, type);
    }
    t->type = (enum tensor_type)type;
    return size_tensor(c, t);
}

static enum err read_tensors(struct cursor *c, uint32_t count, uint64_t *offsets)
{
    struct gguf *g = c->g;
    g->tensors = mem_array(count, sizeof *g->tensors);
    table_make(&g->tensor_table, count);
    c->what = "tensor";
    for (c->index = 0; c->index < count; c->index++) {
        c->name = NULL;
        char *name;
        enum err e = take_name(c, &name);
        if (e != OK) return e;
        struct gguf_tensor *t = &g->tensors[c->index];
        c->name = t->name = name;
        g->tensor_count = c->index + 1;
        uint32_t *slot = table_slot(g, &g->tensor_table, name, false);
        if (*slot) return bad(c, ERR_FORMAT, "is there twice");
        *slot = c->index + 1;
        e = read_tensor(c, t, &offsets[c->index]);
        if (e != OK) return e;
    }
    return OK;
}

static enum err read_alignment(struct cursor *c, uint32_t *out)
{
    static const char key[] = "general.alignment";
    *out = ALIGNMENT_DEFAULT;
    if (!gguf_key_find(c->g, key)) return OK;
    c->what = "key";
    c->name = key;
    if (!gguf_get_u32(c->g, key, out) || *out == 0 || *out > ALIGNMENT_MAX || *out & (*out - 1)) {
        return bad(c, ERR_FORMAT, "is not a power of two from 1 to %d", ALIGNMENT_MAX);
    }
    return OK;
}

/* The data starts at the first multiple of the alignment after the last tensor's entry. */
static enum err place_tensors(struct cursor *c, const uint64_t *offsets)
{
    uint32_t alignment;
    enum err e = read_alignment(c, &alignment);
    if (e != OK) return e;
    struct gguf *g = c->g;
    uint64_t start = (c->at + alignment - 1) & ~(uint64_t)(alignment - 1);
    c->what = "tensor";
    for (uint32_t i = 0; i < g->tensor_count; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        c->name = t->name;
        if (offsets[i] % alignment) {
            return bad(c, ERR_FORMAT, "offset %" PRIu64 " is not a multiple of %" PRIu32,
                       offsets[i], alignment);
        }
        uint64_t at;
        if (__builtin_add_overflow(start, offsets[i], &at)) {
            return bad(c, ERR_FORMAT, "offset %" PRIu64 " is beyond any file", offsets[i]);
        }
        if (at > g->bytes || t->bytes > g->bytes - at) return truncated(c, at, t->bytes);
        t->data = g->image + at;
    }
    return OK;
}

static enum err read_header(struct cursor *c, uint64_t *tensors, uint64_t *keys)
{
    char magic[4];
    uint32_t version;
    if (c->g->bytes < 4 || memcmp(c->g->image, "GGUF", 4)) {
        return why_set(c->why, ERR_FORMAT, "%.128s: not a GGUF file", c->file);
    }
    enum err e = take(c, magic, sizeof magic);
    if (e == OK) e = take(c, &version, sizeof version);
    if (e != OK) return e;
    if (version != 2 && version != 3) {
        return bad(c, ERR_UNSUPPORTED, "GGUF version %" PRIu32 "%s; 2 and 3 are read", version,
                   version && !(version & 0xffff) ? " (a big-endian file)" : "");
    }
    e = take(c, tensors, sizeof *tensors);
    if (e == OK) e = take(c, keys, sizeof *keys);
    if (e != OK) return e;
    if (*keys > MODEL_KEYS_MAX || *tensors > MODEL_TENSORS_MAX) {
        return bad(c, ERR_LIMIT, "%" PRIu64 " keys and %" PRIu64 " tensors; at most %d and %d",
                   *keys, *tensors, MODEL_KEYS_MAX, MODEL_TENSORS_MAX);
    }
    uint64_t least = *keys * KEY_BYTES_MIN + *tensors * TENSOR_BYTES_MIN;
    return least > c->g->bytes - c->at ? truncated(c, c->at, least) : OK;
}

static enum err read_all(struct cursor *c)
{
    uint64_t tensors, keys;
    enum err e = read_header(c, &tensors, &keys);
    if (e == OK) e = read_keys(c, (uint32_t)keys);
    if (e != OK) return e;
    uint64_t *offsets = mem_array(tensors, sizeof *offsets);
    e = read_tensors(c, (uint32_t)tensors, offsets);
    if (e == OK) e = place_tensors(c, offsets);
    free(offsets);
    return e;
}

/* Takes the image over, also on failure. */
static enum err open_image(struct gguf **out, const void *image, uint64_t bytes, bool mapped,
                           const char *name, struct why *why)
{
    struct gguf *g = mem_alloc(sizeof *g);
    g->image = image;
    g->bytes = bytes;
    g->mapped = mapped;
    secret_random(&g->secret, sizeof g->secret);
    struct cursor c = { .g = g, .file = name, .what = "header", .why = why };
    enum err e = read_all(&c);
    if (e == OK) {
        *out = g;
    } else {
        gguf_close(g);
    }
    return e;
}

enum err gguf_open_image(struct gguf **out, const void *image, uint64_t bytes, const char *name,
                         struct why *why)
{
    return open_image(out, image, bytes, false, name, why);
}

enum err gguf_open(struct gguf **out, const char *path, struct why *why)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return why_set(why, ERR_IO, "%.128s: %s", path, strerror(errno));
    struct stat st;
    enum err e = OK;
    void *image = MAP_FAILED;
    if (fstat(fd, &st) < 0) {
        e = why_set(why, ERR_IO, "%.128s: %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        e = why_set(why, ERR_IO, "%.128s: not a file", path);
    } else if (st.st_size == 0) {
        e = why_set(why, ERR_FORMAT, "%.128s: the file is empty", path);
    } else {
        image = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (image == MAP_FAILED) e = why_set(why, ERR_IO, "%.128s: %s", path, strerror(errno));
    }
    close(fd);
    return e == OK ? open_image(out, image, (uint64_t)st.st_size, true, path, why) : e;
}

void gguf_close(struct gguf *g)
{
    if (!g) return;
    for (uint32_t i = 0; i < g->key_count; i++) free(g->keys[i].name);
    for (uint32_t i = 0; i < g->tensor_count; i++) free((char *)g->tensors[i].name);
    free(g->keys);
    free(g->tensors);
    free(g->key_table.slots);
    free(g->tensor_table.slots);
    if (g->mapped) munmap((void *)g->image, (size_t)g->bytes);
    free(g);
}

const void *gguf_image(const struct gguf *g, uint64_t *bytes_out)
{
    if (bytes_out) *bytes_out = g->bytes;
    return g->image;
}

uint32_t gguf_tensor_count(const struct gguf *g)
{
    return g->tensor_count;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint32_t i)
{
    CHECK(i < g->tensor_count);
    return &g->tensors[i];
}
