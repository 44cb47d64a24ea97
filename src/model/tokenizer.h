/* model/tokenizer.h - text to token ids and back, from the vocabulary inside a GGUF.
 *
 * Byte-level BPE ("gpt2" in GGUF), with the pre-tokenizer that tokenizer.ggml.pre names: a row of
 * regular expressions a family (PCRE2, its Unicode tables).  SentencePiece-style ones come later
 * and are refused by name.
 * Owner: one tokenizer may be used by many threads at once (const after open).
 * Always true: special tokens come from user text only when `parse_special` is set.
 */
#ifndef RANKSERVE_MODEL_TOKENIZER_H
#define RANKSERVE_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "common/mem.h"
#include "model/gguf.h"

struct tokenizer;

enum err tokenizer_open(struct tokenizer **out, const struct gguf *g, struct why *why);
void tokenizer_close(struct tokenizer *t);

struct token_list {
    int32_t *ids;
    size_t count, room;
};
void token_list_release(struct token_list *l);
void token_list_add(struct token_list *l, int32_t id);
void token_list_append(struct token_list *l, const int32_t *ids, size_t count);

/* Appends the ids of `text` (any bytes: invalid UTF-8 is tokenized byte by byte) to out.  With
 * `parse_special` the text of control tokens becomes their id (a rendered chat template); without
 * it, it is plain text.  Never adds BOS/EOS.  Bytes that the vocabulary lacks give nothing.
 * Fails with ERR_LIMIT, and `out` as it was, when this text gives more than `count_max` tokens. */
enum err tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes,
                          bool parse_special, size_t count_max, struct token_list *out);

/* The first place at or behind text[from], but not before text[1], where plain text may be cut: the
 * ids of both sides, each by itself, are those of the whole, whatever they hold.  Where a place is
 * depends on three bytes before and behind it; tokenizer_cut.h has the rules and their proof.
 * `bytes` when there is none. */
size_t tokenizer_cut(const struct tokenizer *t, const char *text, size_t bytes, size_t from);

/* The bytes of one token: may be part of a character; special tokens give their text when
 * `show_special`, else nothing.  `*bytes_out` = 0 for unknown ids. */
const char *tokenizer_piece(const struct tokenizer *t, int32_t id, bool show_special,
                            size_t *bytes_out);
/* Appends the text of all ids. */
void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t count,
                      bool show_special, struct buf *out);

uint32_t tokenizer_vocab(const struct tokenizer *t);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);   /* control token */
/* -1 when the model has none. */
int32_t tokenizer_bos(const struct tokenizer *t);
int32_t tokenizer_eos(const struct tokenizer *t);
bool tokenizer_add_bos(const struct tokenizer *t);   /* does plain text start with BOS? */
/* Every id that ends a turn (eos, eot, <|im_end|> ...), at most `max`; returns how many. */
uint32_t tokenizer_end_ids(const struct tokenizer *t, int32_t *out, uint32_t max);
/* The id whose text is exactly `text` and which is special, or -1. */
int32_t tokenizer_special_id(const struct tokenizer *t, const char *text);

/* A stream of tokens turned into whole characters: bytes of a character that is not complete yet
 * are kept back.  Bytes that can never become valid UTF-8 come out as U+FFFD, as Python's
 * errors="replace" gives them. */
struct utf8_stream {
    unsigned char held[4];
    unsigned held_count;
};
void utf8_stream_add(struct utf8_stream *s, const char *bytes, size_t count, struct buf *out);
void utf8_stream_end(struct utf8_stream *s, struct buf *out);       /* flushes what is held */

#endif
