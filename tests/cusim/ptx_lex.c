/* tests/cusim/ptx_lex.c - words, numbers and punctuation of PTX. */
#include <ctype.h>
#include <string.h>

#include "ptx_parse.h"
#include "report.h"

void lex_open(struct lexer *x, const char *text)
{
    *x = (struct lexer){.at = text, .line = 1};
    lex_next(x);
}

static void skip_blanks(struct lexer *x)
{
    for (;; x->at++) {
        if (x->at[0] == '/' && x->at[1] == '/') {
            while (*x->at && *x->at != '\n') x->at++;
        } else if (x->at[0] == '/' && x->at[1] == '*') {
            const char *end = strstr(x->at, "*/");
            if (!end) report(BAD_PTX, "line %u: a comment does not end", x->line);
            while (x->at < end + 1) x->line += *x->at++ == '\n';
            continue;
        }
        if (*x->at == '\n') x->line++;
        if (!*x->at || !isspace((unsigned char)*x->at)) return;
    }
}

static bool is_word(const char *at)
{
    return isalnum((unsigned char)*at) || strchr("_$%.", *at);
}

void lex_next(struct lexer *x)
{
    skip_blanks(x);
    const char *start = x->at;
    if (!*start) {
        x->kind = TOK_END;
        x->text[0] = 0;
        return;
    }
    bool number = isdigit((unsigned char)*start) ||
                  (*start == '-' && isdigit((unsigned char)start[1]));
    if (*start == '"') {
        x->kind = TOK_STRING;
        x->at = strchr(start + 1, '"');
        if (!x->at) report(BAD_PTX, "line %u: a string does not end", x->line);
        x->at++;
    } else if (number || is_word(start)) {
        x->kind = number ? TOK_NUMBER : TOK_WORD;
        x->at++;
        while (*x->at && (is_word(x->at) || (x->at[0] == ':' && x->at[1] == ':' && !number))) {
            x->at += *x->at == ':' ? 2 : 1;
        }
    } else {
        x->kind = TOK_PUNCT;
        x->punct = *start;
        x->at++;
    }
    size_t n = (size_t)(x->at - start);
    if (n >= sizeof x->text) n = sizeof x->text - 1;
    memcpy(x->text, start, n);
    x->text[n] = 0;
}

void lex_skip_line(struct lexer *x)
{
    while (*x->at && *x->at != '\n') x->at++;
    lex_next(x);
}

void lex_skip_braces(struct lexer *x)
{
    int depth = 0;
    do {
        if (x->kind == TOK_PUNCT && x->punct == '{') depth++;
        if (x->kind == TOK_PUNCT && x->punct == '}') depth--;
        lex_next(x);
    } while (depth && x->kind != TOK_END);
}
