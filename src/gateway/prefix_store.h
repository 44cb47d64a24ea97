/* gateway/prefix_store.h - ids of text that was tokenized before: a conversation's history, once.
 *
 * Text comes in pieces between special tokens, whose ids depend on nothing around them.  A long
 * piece is cut into chunks where its tokenizer cuts in any case (tokenizer_cut), at places chosen
 * by the bytes just before them: so a text has the chunks it had before, behind the same beginning
 * and, but for its first, behind another one.  A chunk's ids are found by its bytes, which are
 * compared, not just hashed.
 * Always true: the ids are those of tokenizer_encode over the whole piece.  Memory is bounded;
 * the chunk that was not used for longest goes first.  Any thread may call.
 */
#ifndef RANKSERVE_GATEWAY_PREFIX_STORE_H
#define RANKSERVE_GATEWAY_PREFIX_STORE_H

#include "model/tokenizer.h"

struct prefix_store;

struct prefix_store *prefix_store_open(const struct tokenizer *t, size_t bytes_max);
void prefix_store_close(struct prefix_store *s);

/* As tokenizer_encode without parse_special. */
enum err prefix_store_encode(struct prefix_store *s, const char *text, size_t bytes,
                             size_t count_max, struct token_list *out);

struct prefix_store_stats {
    uint64_t found, made;             /* tokens */
    size_t bytes, chunks;             /* kept now */
};
void prefix_store_stats(struct prefix_store *s, struct prefix_store_stats *out);

#endif
