/* model/tokenizer.c - opening a tokenizer, encoding, decoding, and what is asked about tokens.
 *
 * Text goes through three cuts before it is merged: special tokens (tokenizer_special.c), runs of
 * valid UTF-8 (utf8_stream.c; each other byte stands alone), and the family's expressions
 * (tokenizer_split.c).  Each piece is then merged on its own (tokenizer_bpe.c).
 */
#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_cut.h"
#include "model/tokenizer_special.h"
#include "model/tokenizer_split.h"
#include "model/tokenizer_utf8.h"
#include "model/tokenizer_vocab.h"

enum { END_IDS_MAX = 16 };

struct tokenizer {
    struct vocab vocab;
    struct bpe bpe;
    struct splitter splitter;
    struct special_set always;        /* user-defined tokens: found in any text       */
    struct special_set all;           /* and control tokens: found by parse_special   */
    struct cut_rules cuts;
    int32_t bos, eos;
    bool add_bos;
    int32_t end_ids[END_IDS_MAX];
    uint32_t end_count;
};

#define BAR "\xEF\xBD\x9C"       /* U+FF5C */
#define UNDER "\xE2\x96\x81"     /* U+2581 */
#define DEEPSEEK_END "<" BAR "end" UNDER "of" UNDER "sentence" BAR ">"

/* Texts that end a turn in some family, where a file has them as control tokens. */
static const char *const end_texts[] = {
    "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>",
    "</s>", "<|eom_id|>", DEEPSEEK_END,
};

static void end_id_add(struct tokenizer *t, int32_t id)
{
    if (id == TOKEN_NONE || t->end_count == END_IDS_MAX) return;
    for (uint32_t i = 0; i < t->end_count; i++) {
        if (t->end_ids[i] == id) return;
    }
    t->end_ids[t->end_count++] = id;
}

/* TOKEN_NONE when the file has no such key, or all ones in it, as some writers say "none". */
static enum err id_read(const struct tokenizer *t, const struct gguf *g, const char *key,
                        int32_t *out, struct why *why)
{
    uint32_t id;
    *out = TOKEN_NONE;
    if (!gguf_get_u32(g, key, &id) || id == UINT32_MAX) return OK;
    if (id >= t->vocab.count) {
        return why_set(why, ERR_FORMAT, "%s is %u, but the vocabulary has %u tokens", key, id,
                       t->vocab.count);
    }
    *out = (int32_t)id;
    return OK;
}

static enum err ids_read(struct tokenizer *t, const struct gguf *g, struct why *why)
{
    int32_t eot, eom;
    enum err e = id_read(t, g, "tokenizer.ggml.bos_token_id", &t->bos, why);
    if (e == OK) e = id_read(t, g, "tokenizer.ggml.eos_token_id", &t->eos, why);
    if (e == OK) e = id_read(t, g, "tokenizer.ggml.eot_token_id", &eot, why);
    if (e == OK) e = id_read(t, g, "tokenizer.ggml.eom_token_id", &eom, why);
    if (e != OK) return e;
    end_id_add(t, t->eos);
    end_id_add(t, eot);
    end_id_add(t, eom);
    for (size_t i = 0; i < sizeof end_texts / sizeof end_texts[0]; i++) {
        end_id_add(t, tokenizer_special_id(t, end_texts[i]));
    }
    bool add;
    t->add_bos = gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &add)
                     ? add : t->splitter.family->add_bos;
    if (t->bos == TOKEN_NONE) t->add_bos = false;
    return OK;
}

static enum err model_check(const struct gguf *g, struct why *why)
{
    struct gguf_text model;
    if (!gguf_get_text(g, "tokenizer.ggml.model", &model)) {
        return why_set(why, ERR_FORMAT, "no tokenizer.ggml.model: the file has no tokenizer");
    }
    if (model.bytes == 4 && !memcmp(model.data, "gpt2", 4)) return OK;
    int shown = (int)(model.bytes < 64 ? model.bytes : 64);
    if ((model.bytes == 5 && !memcmp(model.data, "llama", 5)) ||
        (model.bytes == 2 && !memcmp(model.data, "t5", 2))) {
        return why_set(why, ERR_UNSUPPORTED, "tokenizer.ggml.model is \"%.*s\": SentencePiece "
                       "tokenizers are not supported yet, only \"gpt2\" is", shown, model.data);
    }
    return why_set(why, ERR_UNSUPPORTED, "tokenizer.ggml.model is \"%.*s\": only \"gpt2\" is "
                   "supported", shown, model.data);
}

static enum err parts_open(struct tokenizer *t, const struct gguf *g, struct why *why)
{
    struct gguf_text pre = { "default", 7 };
    gguf_get_text(g, "tokenizer.ggml.pre", &pre);    /* absent from files of before 2024-05 */
    enum err e = splitter_open(&t->splitter, pre, why);
    if (e == OK) e = vocab_open(&t->vocab, g, why);
    if (e == OK) e = bpe_open(&t->bpe, g, &t->vocab, why);
    if (e != OK) return e;
    special_open(&t->always, &t->vocab, false);
    special_open(&t->all, &t->vocab, true);
    cut_rules_open(&t->cuts, t->splitter.family, &t->always);
    return ids_read(t, g, why);
}

enum err tokenizer_open(struct tokenizer **out, const struct gguf *g, struct why *why)
{
    *out = NULL;
    enum err e = model_check(g, why);
    if (e != OK) return e;
    struct tokenizer *t = mem_alloc(sizeof *t);
    e = parts_open(t, g, why);
    if (e != OK) {
        tokenizer_close(t);
        return e;
    }
    *out = t;
    return OK;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    special_release(&t->all);
    special_release(&t->always);
    bpe_release(&t->bpe);
    vocab_release(&t->vocab);
    splitter_release(&t->splitter);
    free(t);
}

void token_list_release(struct token_list *l)
{
    free(l->ids);
    *l = (struct token_list){ 0 };
}

void token_list_add(struct token_list *l, int32_t id)
{
    if (l->count == l->room) {
        l->room = l->room ? 2 * l->room : 64;
        l->ids = mem_resize(l->ids, l->room, sizeof *l->ids);
    }
    l->ids[l->count++] = id;
}

void token_list_append(struct token_list *l, const int32_t *ids, size_t count)
{
    if (count > l->room - l->count) {
        l->room = 2 * l->room > l->count + count ? 2 * l->room : l->count + count;
        l->ids = mem_resize(l->ids, l->room, sizeof *l->ids);
    }
    if (count) memcpy(l->ids + l->count, ids, count * sizeof *ids);
    l->count += count;
}

/* One call of tokenizer_encode. */
struct encoding {
    const struct tokenizer *t;
    struct token_list *out;
    size_t count_end;                 /* out->count may not pass this */
    pcre2_match_data *match;
    struct bpe_work work;
};

static enum err count_check(const struct encoding *n)
{
    return n->out->count > n->count_end ? ERR_LIMIT : OK;
}

static enum err piece_add(void *owner, const char *piece, size_t bytes)
{
    struct encoding *n = owner;
    const struct tokenizer *t = n->t;
    int32_t whole = t->splitter.family->ignore_merges ? vocab_find(&t->vocab, piece, bytes)
                                                      : TOKEN_NONE;
    if (whole != TOKEN_NONE) token_list_add(n->out, whole);
    else bpe_encode(&t->bpe, &n->work, piece, bytes, n->out);
    return count_check(n);
}

static enum err plain_add(struct encoding *n, const char *text, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        size_t run = utf8_valid_run(text + at, bytes - at);
        enum err e = splitter_run(&n->t->splitter, n->match, text + at, run, piece_add, n);
        at += run;
        if (e == OK && at < bytes) e = piece_add(n, text + at++, 1);
        if (e != OK) return e;
    }
    return OK;
}

static enum err text_add(struct encoding *n, const char *text, size_t bytes, bool parse_special)
{
    const struct special_set *specials = parse_special ? &n->t->all : &n->t->always;
    while (bytes) {
        size_t from = bytes, to = bytes;
        int32_t id = special_find(specials, text, bytes, &from, &to);
        enum err e = plain_add(n, text, from);
        if (e == OK && id != TOKEN_NONE) {
            token_list_add(n->out, id);
            e = count_check(n);
        }
        if (e != OK) return e;
        text += to;
        bytes -= to;
    }
    return OK;
}

enum err tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes,
                          bool parse_special, size_t count_max, struct token_list *out)
{
    /* What cannot fit is refused before memory is taken for it; the merging counts in 31 bits. */
    if (bytes >= INT32_MAX) return ERR_LIMIT;
    if (!t->bpe.byte_missing && bytes / t->vocab.longest > count_max) return ERR_LIMIT;
    size_t before = out->count;
    struct encoding n = {
        .t = t, .out = out, .match = pcre2_match_data_create(1, NULL),
        .count_end = count_max > SIZE_MAX - before ? SIZE_MAX : before + count_max,
    };
    CHECK(n.match);
    enum err e = text_add(&n, text, bytes, parse_special);
    if (e != OK) out->count = before;
    pcre2_match_data_free(n.match);
    bpe_work_release(&n.work);
    return e;
}

size_t tokenizer_cut(const struct tokenizer *t, const char *text, size_t bytes, size_t from)
{
    for (size_t at = from ? from : 1; at < bytes; at++) {
        if (cut_allowed(&t->cuts, text, bytes, at)) return at;
    }
    return bytes;
}

static bool is_known(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && (uint32_t)id < t->vocab.count;
}

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, bool show_special,
                            size_t *bytes_out)
{
    *bytes_out = 0;
    if (!is_known(t, id)) return "";
    uint8_t type = t->vocab.type[id];
    bool hidden = type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || type == TOKEN_UNUSED;
    return hidden && !show_special ? "" : vocab_text(&t->vocab, (uint32_t)id, bytes_out);
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t count,
                      bool show_special, struct buf *out)
{
    for (size_t i = 0; i < count; i++) {
        size_t bytes;
        const char *piece = tokenizer_piece(t, ids[i], show_special, &bytes);
        buf_add(out, piece, bytes);
    }
}

uint32_t tokenizer_vocab(const struct tokenizer *t)
{
    return t->vocab.count;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return is_known(t, id) &&
           (t->vocab.type[id] == TOKEN_CONTROL || t->vocab.type[id] == TOKEN_UNKNOWN);
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_add_bos(const struct tokenizer *t)
{
    return t->add_bos;
}

uint32_t tokenizer_end_ids(const struct tokenizer *t, int32_t *out, uint32_t max)
{
    uint32_t count = t->end_count < max ? t->end_count : max;
    if (count) memcpy(out, t->end_ids, count * sizeof *out);
    return count;
}

int32_t tokenizer_special_id(const struct tokenizer *t, const char *text)
{
    int32_t id = special_exact(&t->all, text, strlen(text));
    return tokenizer_is_special(t, id) ? id : TOKEN_NONE;
}
