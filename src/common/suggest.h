/* common/suggest.h - "did you mean": the name nearest to a mistyped one. */
#ifndef RANKSERVE_COMMON_SUGGEST_H
#define RANKSERVE_COMMON_SUGGEST_H

#include <stddef.h>

/* Keeps the best of the names it is shown.  Start with { .wrong = text }. */
struct suggest {
    const char *wrong;
    const char *best;                 /* NULL: nothing near enough to be worth saying */
    unsigned distance;
};
void suggest_offer(struct suggest *s, const char *name);
/* "; did you mean NAME?" or "" in `out`, for the end of a message. */
const char *suggest_text(const struct suggest *s, const char *before, char *out, size_t bytes);

#endif
