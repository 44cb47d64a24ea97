/* model/tokenizer_vocab.c - see tokenizer_vocab.h. */
#include "model/tokenizer_vocab.h"

#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/mem.h"

#define KEY_TOKENS "tokenizer.ggml.tokens"
#define KEY_TYPES "tokenizer.ggml.token_type"

/* GPT-2 writes the bytes that are printable in Latin-1 as themselves, and the other 68, in order,
 * as U+0100 onwards: three runs of them.  -1 for a code point that stands for no byte. */
static int byte_of_code_point(unsigned point)
{
    if ((point >= 33 && point <= 126) || (point >= 161 && point <= 255 && point != 173)) {
        return (int)point;
    }
    if (point < 256 || point > 256 + 67) return -1;
    unsigned nth = point - 256;
    if (nth < 33) return (int)nth;                  /* 0 to 32     */
    if (nth < 33 + 34) return (int)(nth - 33 + 127); /* 127 to 160 */
    return 173;
}

bool vocab_bytes_of(struct gguf_text text, char *out, size_t *count_out)
{
    const unsigned char *p = (const unsigned char *)text.data;
    size_t count = 0;
    for (uint64_t i = 0; i < text.bytes; i++) {
        unsigned point = p[i];
        if (point >= 0x80) {
            /* None of the 256 code points is longer than two bytes. */
            if ((point & 0xE0) != 0xC0 || i + 1 == text.bytes) return false;
            if ((p[i + 1] & 0xC0) != 0x80) return false;
            point = (point & 0x1F) << 6 | (p[++i] & 0x3F);
            if (point < 0x80) return false;
        }
        int byte = byte_of_code_point(point);
        if (byte < 0) return false;
        out[count++] = (char)byte;
    }
    *count_out = count;
    return true;
}

static uint32_t text_hash(const struct vocab *v, const void *bytes, size_t count)
{
    return (uint32_t)hash_sip128(v->secret, bytes, count).lo;
}

/* The slot of these bytes, or the free one where they belong. */
static struct vocab_slot *slot_of(const struct vocab *v, uint32_t hash, const void *bytes,
                                  size_t count)
{
    for (uint32_t i = hash & v->slot_mask;; i = (i + 1) & v->slot_mask) {
        struct vocab_slot *slot = &v->slots[i];
        if (slot->id == TOKEN_NONE) return slot;
        if (slot->hash != hash) continue;
        size_t there;
        const char *text = vocab_text(v, (uint32_t)slot->id, &there);
        if (there == count && !memcmp(text, bytes, count)) return slot;
    }
}

int32_t vocab_find(const struct vocab *v, const void *bytes, size_t count)
{
    return slot_of(v, text_hash(v, bytes, count), bytes, count)->id;
}

static void slots_open(struct vocab *v)
{
    uint32_t slots = 16;
    while (slots < 2 * v->count) slots *= 2;
    v->slots = mem_array(slots, sizeof *v->slots);
    v->slot_mask = slots - 1;
    for (uint32_t i = 0; i < slots; i++) v->slots[i].id = TOKEN_NONE;
    secret_random(&v->secret, sizeof v->secret);
}

static void slots_add(struct vocab *v, uint32_t id)
{
    size_t count;
    const char *text = vocab_text(v, id, &count);
    uint32_t hash = text_hash(v, text, count);
    struct vocab_slot *slot = slot_of(v, hash, text, count);
    if (slot->id == TOKEN_NONE) *slot = (struct vocab_slot){ hash, (int32_t)id };
}

/* Writes the token's bytes behind those before it; says whether plain text may become it. */
static bool token_add(struct vocab *v, uint32_t id, struct gguf_text text)
{
    char *at = v->text + v->start[id];
    size_t count = text.bytes;
    bool plain = vocab_bytes_of(text, at, &count);
    switch (v->type[id]) {
    case TOKEN_CONTROL: case TOKEN_UNKNOWN: case TOKEN_UNUSED:
        plain = false;
        break;
    case TOKEN_USER_DEFINED:   /* written as it is: merges reach it only if both forms agree */
        plain = plain && count == text.bytes && !memcmp(at, text.data, count);
        break;
    default:
        if (plain) {
            v->start[id + 1] = v->start[id] + count;
            return count > 0;
        }
    }
    if (text.bytes) memcpy(at, text.data, text.bytes);
    v->start[id + 1] = v->start[id] + text.bytes;
    return plain && text.bytes > 0;
}

static enum err types_read(struct vocab *v, const struct gguf *g, struct why *why)
{
    v->type = mem_array(v->count, sizeof *v->type);
    memset(v->type, TOKEN_NORMAL, v->count);
    uint64_t count = gguf_array_count(g, KEY_TYPES);
    if (!count) return OK;       /* old files have none: nothing in them is special */
    if (count != v->count) {
        return why_set(why, ERR_FORMAT, "%s has %llu entries for %u tokens", KEY_TYPES,
                       (unsigned long long)count, v->count);
    }
    uint32_t *types = mem_array(count, sizeof *types);
    bool integers = gguf_array_u32(g, KEY_TYPES, types);
    for (uint32_t i = 0; i < count && integers; i++) {
        if (types[i] >= TOKEN_NORMAL && types[i] <= TOKEN_BYTE) v->type[i] = (uint8_t)types[i];
    }
    free(types);
    return integers ? OK : why_set(why, ERR_FORMAT, "%s is not an array of integers", KEY_TYPES);
}

static enum err tokens_add(struct vocab *v, const struct gguf_text *texts, struct why *why)
{
    size_t total = 0;
    for (uint32_t i = 0; i < v->count; i++) {
        if (texts[i].bytes > TOKEN_BYTES_MAX) {
            return why_set(why, ERR_LIMIT, "token %u of %s has %llu bytes; at most %d are allowed",
                           i, KEY_TOKENS, (unsigned long long)texts[i].bytes, TOKEN_BYTES_MAX);
        }
        total += texts[i].bytes;
    }
    v->text = mem_alloc(total);
    v->start = mem_array((size_t)v->count + 1, sizeof *v->start);
    slots_open(v);
    for (uint32_t i = 0; i < v->count; i++) {
        if (token_add(v, i, texts[i])) slots_add(v, i);
        size_t bytes = v->start[i + 1] - v->start[i];
        if (bytes > v->longest) v->longest = bytes;
    }
    return OK;
}

enum err vocab_open(struct vocab *v, const struct gguf *g, struct why *why)
{
    *v = (struct vocab){ 0 };
    uint64_t count = gguf_array_count(g, KEY_TOKENS);
    if (!count) return why_set(why, ERR_FORMAT, "no %s: the file has no vocabulary", KEY_TOKENS);
    if (count > VOCAB_MAX) {
        return why_set(why, ERR_LIMIT, "%s has %llu tokens; at most %d are allowed", KEY_TOKENS,
                       (unsigned long long)count, VOCAB_MAX);
    }
    v->count = (uint32_t)count;
    struct gguf_text *texts = mem_array(count, sizeof *texts);
    enum err e = OK;
    if (!gguf_array_texts(g, KEY_TOKENS, texts)) {
        e = why_set(why, ERR_FORMAT, "%s is not an array of texts", KEY_TOKENS);
    }
    if (e == OK) e = types_read(v, g, why);
    if (e == OK) e = tokens_add(v, texts, why);
    free(texts);
    if (e != OK) vocab_release(v);
    return e;
}

void vocab_release(struct vocab *v)
{
    free(v->text);
    free(v->start);
    free(v->type);
    free(v->slots);
    *v = (struct vocab){ 0 };
}
