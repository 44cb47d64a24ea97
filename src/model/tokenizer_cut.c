/* model/tokenizer_cut.c - see tokenizer_cut.h. */
#include "model/tokenizer_cut.h"

enum letter { LETTER_NONE, LETTER_CASED, LETTER_UNCASED, LETTER_CJK };

struct range { unsigned first, last; enum letter kind; };

/* Letters in every version of Unicode that could be asked; the cased ones are in CASED_DEEPSEEK. */
static const struct range letters[] = {
    { 0x00C0, 0x00D6, LETTER_CASED },   { 0x00D8, 0x00F6, LETTER_CASED },
    { 0x00F8, 0x017F, LETTER_CASED },   { 0x0391, 0x03A1, LETTER_CASED },
    { 0x03A3, 0x03CE, LETTER_CASED },   { 0x0400, 0x0481, LETTER_CASED },
    { 0x05D0, 0x05EA, LETTER_UNCASED }, { 0x0620, 0x064A, LETTER_UNCASED },
    { 0x0904, 0x0939, LETTER_UNCASED }, { 0x1E00, 0x1EFF, LETTER_CASED },
    { 0x3041, 0x3096, LETTER_CJK },     { 0x30A1, 0x30FA, LETTER_CJK },
    { 0x4E00, 0x9FA5, LETTER_CJK },     { 0xAC00, 0xD7A3, LETTER_UNCASED },
};

static bool is_white(unsigned char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static bool is_tail(unsigned char c)
{
    return (c & 0xC0) == 0x80;
}

/* The code point of two or three bytes that ends before p[at]; 0: none does. */
static unsigned point_before(const unsigned char *p, size_t at)
{
    if (at < 2 || !is_tail(p[at - 1])) return 0;
    unsigned low = p[at - 1] & 0x3F;
    if (p[at - 2] >= 0xC2 && p[at - 2] < 0xE0) return (p[at - 2] & 0x1Fu) << 6 | low;
    if (at < 3 || !is_tail(p[at - 2]) || (p[at - 3] & 0xF0) != 0xE0) return 0;
    return (p[at - 3] & 0x0Fu) << 12 | (p[at - 2] & 0x3Fu) << 6 | low;
}

static enum letter letter_before(const unsigned char *p, size_t at)
{
    unsigned char lower = p[at - 1] | 0x20;
    if (p[at - 1] < 0x80) return lower >= 'a' && lower <= 'z' ? LETTER_CASED : LETTER_NONE;
    unsigned point = point_before(p, at);
    for (size_t i = 0; i < sizeof letters / sizeof letters[0]; i++) {
        if (point >= letters[i].first && point <= letters[i].last) return letters[i].kind;
    }
    return LETTER_NONE;
}

static bool is_stop(const unsigned char *p, size_t left)
{
    if (left < 3) return false;
    if (p[0] == 0xE3) return p[1] == 0x80 && (p[2] == 0x81 || p[2] == 0x82);
    return p[0] == 0xEF && p[1] == 0xBC && p[2] == 0x8C;
}

bool cut_allowed(const struct cut_rules *r, const char *text, size_t bytes, size_t at)
{
    const unsigned char *p = (const unsigned char *)text;
    if (is_white(p[at])) {
        if (!r->words) return false;
        enum letter kind = letter_before(p, at);
        return kind == LETTER_CASED || (kind != LETTER_NONE && r->uncased);
    }
    if (p[at] < 0x80 || !r->stops || !is_stop(p + at, bytes - at)) return false;
    return letter_before(p, at) == LETTER_CJK;
}

/* Of any neighbours in a special text that could be the two sides of a place. */
static void forbid(struct cut_rules *r, unsigned char left, unsigned char right)
{
    unsigned char lower = left | 0x20;
    bool letter = (lower >= 'a' && lower <= 'z') || is_tail(left);
    if (letter && is_white(right)) r->words = false;
    if (is_tail(left) && (right == 0xE3 || right == 0xEF)) r->stops = false;
}

void cut_rules_open(struct cut_rules *r, const struct pre_family *f,
                    const struct special_set *always)
{
    *r = (struct cut_rules){ .words = true, .uncased = !f->keeps_uncased, .stops = true };
    for (uint32_t i = 0; i < always->count; i++) {
        const struct special_text *s = &always->texts[i];
        for (uint32_t k = 0; k + 1 < s->bytes; k++) forbid(r, s->text[k], s->text[k + 1]);
    }
}
