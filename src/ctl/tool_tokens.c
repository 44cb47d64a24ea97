/* ctl/tool_tokens.c - rankservectl tokenize and detokenize: a vocabulary-only file is enough. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/limits.h"
#include "ctl/ctl.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

enum { INPUT_BYTES_MAX = 64 << 20, INPUT_TOKENS_MAX = 16 << 20 };

static struct tokenizer *open_tokenizer(const char *command, const char *model, struct gguf **g)
{
    struct why why;
    struct tokenizer *t;
    if (!model) die("%s: say which model: --model FILE", command);
    if (gguf_open(g, model, &why) != OK) die("%s", why.text);
    if (tokenizer_open(&t, *g, &why) != OK) die("%s", why.text);
    return t;
}

int ctl_tokenize(int argc, char **argv)
{
    const char *model = NULL;
    bool special = false;
    const struct flag flags[] = {
        { "model", &model, NULL, "FILE", "a GGUF file" },
        { "parse-special", NULL, &special, NULL, "the text of special tokens becomes their ids" },
        { NULL },
    };
    if (flags_read(flags, "tokenize --model FILE < text", argc, argv)) {
        die("tokenize: unexpected word '%.60s'; the text comes from standard input", argv[1]);
    }
    struct gguf *g;
    struct tokenizer *t = open_tokenizer("tokenize", model, &g);
    struct buf text = { 0 };
    struct token_list list = { 0 };
    read_input(&text, INPUT_BYTES_MAX);
    enum err e = tokenizer_encode(t, text.data, text.size, special, INPUT_TOKENS_MAX, &list);
    if (e != OK) die("tokenize: %s", err_text(e));
    for (size_t i = 0; i < list.count; i++) printf("%s%d", i ? " " : "", list.ids[i]);
    putchar('\n');
    token_list_release(&list);
    buf_release(&text);
    tokenizer_close(t);
    gguf_close(g);
    return 0;
}

/* Ids separated by spaces, commas or brackets, as people paste them. */
static void parse_ids(char *at, uint32_t vocab, struct token_list *list)
{
    while (*at) {
        if (isspace((unsigned char)*at) || *at == ',' || *at == '[' || *at == ']') {
            at++;
            continue;
        }
        char *end;
        unsigned long id = strtoul(at, &end, 10);
        if (!isdigit((unsigned char)*at) || end == at) {
            die("detokenize: '%.20s' is not a token id", at);
        }
        if (id >= vocab) die("detokenize: id %lu is beyond the vocabulary of %u", id, vocab);
        token_list_add(list, (int32_t)id);
        at = end;
    }
}

int ctl_detokenize(int argc, char **argv)
{
    const char *model = NULL;
    bool skip = false;
    const struct flag flags[] = {
        { "model", &model, NULL, "FILE", "a GGUF file" },
        { "skip-special", NULL, &skip, NULL, "leave special tokens out" },
        { NULL },
    };
    if (flags_read(flags, "detokenize --model FILE < ids", argc, argv)) {
        die("detokenize: unexpected word '%.60s'; ids come from standard input", argv[1]);
    }
    struct gguf *g;
    struct tokenizer *t = open_tokenizer("detokenize", model, &g);
    struct buf input = { 0 }, out = { 0 };
    struct token_list list = { 0 };
    read_input(&input, INPUT_BYTES_MAX);
    parse_ids(input.data, tokenizer_vocab(t), &list);
    tokenizer_decode(t, list.ids, list.count, !skip, &out);
    if (out.size) fwrite(out.data, 1, out.size, stdout);
    buf_release(&out);
    buf_release(&input);
    token_list_release(&list);
    tokenizer_close(t);
    gguf_close(g);
    return 0;
}
