/* model/tokenizer_vocab.h - the tokens of a file as bytes, and from bytes back to ids.
 *
 * GGUF keeps ordinary tokens in GPT-2's printable form, one code point a byte; here they are the
 * bytes themselves.  Control and user-defined tokens are kept as they are written.
 * Owner: struct tokenizer.  Never changes after it was opened.
 * Not here: merging (tokenizer_bpe.c), finding special texts (tokenizer_special.c).
 */
#ifndef RANKSERVE_MODEL_TOKENIZER_VOCAB_H
#define RANKSERVE_MODEL_TOKENIZER_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "common/hash.h"
#include "model/gguf.h"

enum { TOKEN_NONE = -1 };

/* Values as in the file. */
enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

struct vocab_slot {
    uint32_t hash;
    int32_t id;                  /* TOKEN_NONE: free */
};

struct vocab {
    uint32_t count;
    size_t longest;              /* bytes of the longest token */
    char *text;                  /* the bytes of all tokens, one after the other */
    size_t *start;               /* count + 1 offsets into text */
    uint8_t *type;               /* enum token_type */
    struct vocab_slot *slots;    /* open addressing; only what plain text may become */
    uint32_t slot_mask;
    struct hash_secret secret;   /* a hostile vocabulary cannot choose its collisions */
};

/* Fills *v from tokenizer.ggml.tokens and .token_type; on failure *v is released. */
enum err vocab_open(struct vocab *v, const struct gguf *g, struct why *why);
void vocab_release(struct vocab *v);

static inline const char *vocab_text(const struct vocab *v, uint32_t id, size_t *bytes_out)
{
    *bytes_out = v->start[id + 1] - v->start[id];
    return v->text + v->start[id];
}

/* The id of the token that plain text of just these bytes may become, or TOKEN_NONE: control,
 * unknown and unused tokens are never found here.  Of duplicates, the lowest id. */
int32_t vocab_find(const struct vocab *v, const void *bytes, size_t count);

/* GPT-2's printable form to bytes; `out` has room for text.bytes.  False when a code point of it
 * stands for no byte. */
bool vocab_bytes_of(struct gguf_text text, char *out, size_t *count_out);

#endif
