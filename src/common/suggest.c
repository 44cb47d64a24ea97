/* common/suggest.c - edit distance over short names; see suggest.h. */
#include "common/suggest.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { SUGGEST_BYTES_MAX = 64 };

static bool same(char a, char b)
{
    int x = a == '_' ? '-' : tolower((unsigned char)a);
    int y = b == '_' ? '-' : tolower((unsigned char)b);
    return x == y;
}

static bool same_start(const char *a, const char *b, size_t bytes)
{
    while (bytes && same(*a, *b)) a++, b++, bytes--;
    return bytes == 0;
}

static unsigned least(unsigned a, unsigned b, unsigned c)
{
    unsigned least_ab = a < b ? a : b;
    return least_ab < c ? least_ab : c;
}

/* Edits (insert, drop, replace, swap two neighbours) between two names, row by row. */
static unsigned distance(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
    unsigned rows[3][SUGGEST_BYTES_MAX + 1];
    for (unsigned j = 0; j <= b_bytes; j++) rows[0][j] = j;
    for (unsigned i = 1; i <= a_bytes; i++) {
        unsigned *row = rows[i % 3], *above = rows[(i - 1) % 3], *higher = rows[(i + 1) % 3];
        row[0] = i;
        for (unsigned j = 1; j <= b_bytes; j++) {
            unsigned replace = above[j - 1] + (same(a[i - 1], b[j - 1]) ? 0 : 1);
            row[j] = least(above[j] + 1, row[j - 1] + 1, replace);
            bool swapped = i > 1 && j > 1 && same(a[i - 1], b[j - 2]) && same(a[i - 2], b[j - 1]);
            if (swapped && higher[j - 2] + 1 < row[j]) row[j] = higher[j - 2] + 1;
        }
    }
    return rows[a_bytes % 3][b_bytes];
}

void suggest_offer(struct suggest *s, const char *name)
{
    size_t a = strlen(s->wrong), b = strlen(name);
    if (!a || a > SUGGEST_BYTES_MAX || b > SUGGEST_BYTES_MAX) return;
    unsigned d = distance(s->wrong, a, name, b);
    bool begins = a >= 4 && b > a && same_start(s->wrong, name, a);
    unsigned enough = begins ? (unsigned)(b - a) : 1 + (unsigned)a / 4;
    if (d > enough || (s->best && d >= s->distance)) return;
    s->best = name;
    s->distance = d;
}

const char *suggest_text(const struct suggest *s, const char *before, char *out, size_t bytes)
{
    if (!s->best) return "";
    snprintf(out, bytes, "; did you mean %s%s?", before, s->best);
    return out;
}
