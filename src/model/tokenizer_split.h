/* model/tokenizer_split.h - cuts text into the pieces that are merged on their own.
 *
 * One row a family of models, found by the name in tokenizer.ggml.pre: regular expressions that are
 * applied one after the other, each to the pieces that the one before left; what an expression
 * matches is a piece, and so is what lies between two matches.
 * Owner: struct tokenizer.  Never changes after it was opened; each call of tokenizer_encode has
 * its own match data.
 */
#ifndef RANKSERVE_MODEL_TOKENIZER_SPLIT_H
#define RANKSERVE_MODEL_TOKENIZER_SPLIT_H

#include <stdbool.h>
#include <stddef.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "common/check.h"
#include "model/gguf.h"

enum { SPLIT_PATTERNS_MAX = 6 };

struct pre_family {
    const char *names;                        /* separated by spaces */
    const char *patterns[SPLIT_PATTERNS_MAX]; /* up to the first NULL */
    bool ignore_merges;                       /* a piece that is a token is taken whole */
    bool keeps_uncased;                       /* letters without case, and the spaces between
                                                 them, may be one piece (tokenizer_cut.h) */
    bool add_bos;                             /* where tokenizer.ggml.add_bos_token is absent */
};

struct splitter {
    const struct pre_family *family;
    pcre2_code *codes[SPLIT_PATTERNS_MAX];
    size_t code_count;
    pcre2_match_context *limits;
};

/* `name` as in the file.  An unknown one is refused with the list of those that are known. */
enum err splitter_open(struct splitter *s, struct gguf_text name, struct why *why);
void splitter_release(struct splitter *s);
/* The names of the nth family, separated by spaces; NULL past the last. */
const char *splitter_families(size_t n);

/* Gets each piece in turn; anything but OK ends the splitting. */
typedef enum err split_piece_fn(void *owner, const char *piece, size_t bytes);

/* `text` is valid UTF-8; `match` has room for one pair. */
enum err splitter_run(const struct splitter *s, pcre2_match_data *match, const char *text,
                      size_t bytes, split_piece_fn *piece, void *owner);

#endif
