/* gateway/guard.h - keeps special tokens out of user text, through a chat template.
 *
 * A template concatenates its own special tokens with strings of the user's.  After rendering, both
 * are one text.  So before rendering, a mark (a Unicode noncharacter that occurs in none of the
 * strings) is put inside whatever in a user's string is, or at its edges could become part of, the
 * text of a special token.  After rendering the marks are taken out again; an occurrence of a
 * special token with a mark inside is plain text, one without is the template's own.
 * Always true: a text without such occurrences gets exactly the ids of the plain rendering, and
 * strings of letters, digits, '_', '-' and '.' alone (roles, names) pass unmarked, because
 * templates compare them and build tokens from them ("<|" + role + "|>").
 */
#ifndef RANKSERVE_GATEWAY_GUARD_H
#define RANKSERVE_GATEWAY_GUARD_H

#include <stdbool.h>
#include <stddef.h>

#include "common/check.h"
#include "common/mem.h"
#include "gateway/prefix_store.h"
#include "model/tokenizer.h"

struct guard;

/* `store` may be NULL; it keeps what guard_encode has tokenized. */
struct guard *guard_open(const struct tokenizer *t, struct prefix_store *store);
void guard_close(struct guard *g);

/* A mark is GUARD_MARK_BYTES of UTF-8; there are GUARD_MARKS of them to choose from. */
enum { GUARD_MARKS = 32, GUARD_MARK_BYTES = 3 };
void guard_mark(unsigned which, char mark[GUARD_MARK_BYTES + 1]);

/* Appends a user's string with its marks. */
void guard_text(const struct guard *g, const char *mark, const char *text, size_t bytes,
                struct buf *out);
/* Takes the marks out of a rendered text and appends its ids; ERR_LIMIT when *out would
 * hold more than count_max. */
enum err guard_encode(const struct guard *g, const char *mark, const char *text, size_t bytes,
                      size_t count_max, struct token_list *out);

#endif
