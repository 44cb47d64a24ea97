/* model/tokenizer_utf8.h - one step of a strict UTF-8 reader, and the longest valid run.
 *
 * Strict: no overlong forms, no surrogates, nothing above U+10FFFF (what PCRE2 and Python accept).
 */
#ifndef RANKSERVE_MODEL_TOKENIZER_UTF8_H
#define RANKSERVE_MODEL_TOKENIZER_UTF8_H

#include <stddef.h>

/* Looks at the start of `p`, bytes > 0.  Returns the length of the character there (1 to 4); 0
 * when the bytes are a character's beginning and no more are there; or -k when the first k bytes
 * (1 to 3) can never become one: the part that Python replaces by one U+FFFD. */
int utf8_step(const unsigned char *p, size_t bytes);

/* How many bytes at the start of `text` are whole, valid characters. */
size_t utf8_valid_run(const char *text, size_t bytes);

#endif
