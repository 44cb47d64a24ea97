/* model/tokenizer_bpe.h - merges the bytes of one piece into tokens.
 *
 * The pair with the lowest rank is merged first, the leftmost of equals, until none is left: what
 * training did.  O(n log n) for a piece of n bytes, whatever the bytes are.
 * Owner: struct tokenizer owns the table (never changes after it was opened); each call of
 * tokenizer_encode owns its working memory.
 */
#ifndef RANKSERVE_MODEL_TOKENIZER_BPE_H
#define RANKSERVE_MODEL_TOKENIZER_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "model/gguf.h"
#include "model/tokenizer.h"
#include "model/tokenizer_vocab.h"

struct bpe_pair;

struct bpe {
    int32_t byte_id[256];        /* TOKEN_NONE: the vocabulary lacks this byte */
    size_t byte_missing;         /* how many it lacks */
    struct bpe_pair *pairs;      /* open addressing by (left, right) */
    uint32_t pair_shift;
    uint64_t factor[2];          /* random: the file cannot choose its collisions */
};

/* Reads tokenizer.ggml.merges.  Merges that name texts outside the vocabulary, or that would make
 * a special token, can never apply and are passed over. */
enum err bpe_open(struct bpe *b, const struct gguf *g, const struct vocab *v, struct why *why);
void bpe_release(struct bpe *b);

struct bpe_work {
    struct bpe_symbol *symbols;
    uint64_t *heap;              /* rank << 32 | position of the pair's left symbol */
    size_t symbol_room, heap_room, heap_count;
};
void bpe_work_release(struct bpe_work *w);

/* Appends the tokens of `piece` (bytes < 2^31).  Bytes that the vocabulary lacks give nothing. */
void bpe_encode(const struct bpe *b, struct bpe_work *w, const char *piece, size_t bytes,
                struct token_list *out);

#endif
