/* model/tokenizer_special.h - finds the texts of special tokens, leftmost and longest.
 *
 * The texts are sorted; a position in the text narrows the range of those that still fit, byte by
 * byte, so that a sorted array serves as a trie.
 * Owner: struct tokenizer, which also owns the texts (struct vocab).
 */
#ifndef RANKSERVE_MODEL_TOKENIZER_SPECIAL_H
#define RANKSERVE_MODEL_TOKENIZER_SPECIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/tokenizer_vocab.h"

struct special_text {
    const unsigned char *text;
    uint32_t bytes;
    int32_t id;
};

struct special_set {
    struct special_text *texts;  /* sorted by bytes, a prefix before what it begins */
    uint32_t count;
    uint32_t first[257];         /* texts[first[c] .. first[c + 1]) begin with byte c */
};

/* The user-defined tokens of `v`; with `control`, its control and unknown tokens too. */
void special_open(struct special_set *s, const struct vocab *v, bool control);
void special_release(struct special_set *s);

/* The first special text in `text`: its id, where it starts and ends; or TOKEN_NONE. */
int32_t special_find(const struct special_set *s, const char *text, size_t bytes, size_t *from,
                     size_t *to);
/* The id of the special text that is exactly `text`, or TOKEN_NONE. */
int32_t special_exact(const struct special_set *s, const char *text, size_t bytes);

#endif
