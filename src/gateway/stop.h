/* gateway/stop.h - finds stop strings in text that arrives in pieces.
 *
 * The answer does not depend on how the text is cut: the match that ends first wins, and of several
 * that end together the longest.  Text that may still become a match is held back, no more.
 * Owner: a call owns the strings, each of its choices a scan.
 */
#ifndef RANKSERVE_GATEWAY_STOP_H
#define RANKSERVE_GATEWAY_STOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/limits.h"
#include "common/mem.h"

struct stop_string {
    char *text;
    uint32_t bytes;
    uint16_t *back;                   /* KMP: where to go on after a mismatch at i */
};
struct stop_strings {
    struct stop_string item[STOP_STRINGS_MAX];
    uint32_t count;
    bool include;                     /* the match itself is part of the output */
};
/* False when there are too many, or the text is empty or too long. */
bool stop_strings_add(struct stop_strings *s, const char *text, size_t bytes);
void stop_strings_release(struct stop_strings *s);

struct stop_scan {
    uint16_t matched[STOP_STRINGS_MAX]; /* bytes of each string that the text's end matches */
    struct buf held;
};
void stop_scan_release(struct stop_scan *scan);

/* Appends to out what is certain to be output.  Returns the index of the string that ended the
 * text, or -1; after a match nothing more may be added. */
int stop_scan_add(struct stop_scan *scan, const struct stop_strings *s, const char *text,
                  size_t bytes, struct buf *out);
/* The text is over: what was held back is output. */
void stop_scan_end(struct stop_scan *scan, struct buf *out);

#endif
