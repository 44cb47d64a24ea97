/* model/tokenizer_split.c - see tokenizer_split.h.
 *
 * The expressions are facts about published models (the "pre_tokenizer" of their tokenizer.json;
 * llama.cpp's names).  Written for PCRE2 with the same meaning as the Oniguruma originals: \s is
 * spelled out, since PCRE2 counts U+180E as a space and Unicode no longer does.
 * Always true: no expression needs more than linear time for any text, beyond a constant factor.
 */
#include "model/tokenizer_split.h"

#include <string.h>

#include "common/mem.h"

/* What stands inside [ ]: the characters of Unicode's White_Space. */
#define WS "\\t-\\r\\x{85}\\p{Z}"
#define SPACE "[" WS "]"
#define SOLID "[^" WS "]"

#define CONTRACTION "'s|'t|'re|'ve|'m|'ll|'d"
#define ANY_CASE "(?i:" CONTRACTION ")"
#define SYMBOLS " ?[^" WS "\\p{L}\\p{N}]+"
/* A run of white space leaves its last character to the word behind it. */
#define SPACES_END SPACE "+(?!" SOLID ")|" SPACE "+"
#define LINES_END SPACE "*[\\r\\n]+|" SPACES_END

#define DIGIT "\\p{N}"
#define DIGITS "\\p{N}+"
#define THREE_DIGITS "[0-9][0-9][0-9]"
#define GPT2 CONTRACTION "| ?\\p{L}+| ?\\p{N}+|" SYMBOLS "|" SPACES_END

/* The GPT-4 kind, which differs in how many digits stay together. */
#define WORD "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define GPT4(digits) ANY_CASE "|" WORD "|" digits "|" SYMBOLS "[\\r\\n]*|" LINES_END
#define QWEN35 ANY_CASE "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^" WS \
    "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" LINES_END
#define SEED_CODER ANY_CASE "|" WORD "|\\p{N}| ?[^" WS "\\p{L}\\p{N}\\r\\n]+|" LINES_END
#define BAILING "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^" WS \
    "\\p{L}\\p{N}]++[\\r\\n]*|" SPACE "*[\\r\\n]|" SPACES_END

/* The GPT-4o kind: words are cut where upper case follows lower case. */
#define HIGH "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOW "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(suffix) "[^\\r\\n\\p{L}\\p{N}]?" HIGH "*" LOW "+" suffix \
    "|[^\\r\\n\\p{L}\\p{N}]?" HIGH "+" LOW "*" suffix
#define TEKKEN CASED("") "|\\p{N}|" SYMBOLS "[\\r\\n/]*|" LINES_END
#define GPT4O CASED(ANY_CASE "?") "|\\p{N}{1,3}|" SYMBOLS "[\\r\\n/]*|" LINES_END

#define PUNCTUATION "[\\p{P}$+<=>^~|]+"
#define PUNCTUATION_FALCON "[\\p{P}$+<=>^~|`]+"
#define BLOOM " ?[^(" WS "|.,!?\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{964}\\x{6D4}\\x{60C})]+"

#define CJK_DEEPSEEK3 "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+"
#define DEEPSEEK3 "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+" \
    "|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" LINES_END

#define LINE_BREAK "[\\r\\n]"
#define CJK_DEEPSEEK "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"
#define PUNCTUATION_DEEPSEEK SPACE "?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}" \
    "\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+"
/* The original is \s+$, which takes quadratic time when many spaces are followed by a word. */
#define SPACES_LAST "(?<!" SPACE ")" SPACE "++$"
#define CASED_DEEPSEEK SPACE "?[" \
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}" \
    "\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}" \
    "\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}" \
    "\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}" \
    "\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}" \
    "\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}" \
    "\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}" \
    "\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}" \
    "\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}" \
    "\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}" \
    "\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}\\x{210A}-\\x{2113}" \
    "\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}" \
    "\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}" \
    "\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}" \
    "\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}" \
    "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}" \
    "\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}" \
    "\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}" \
    "\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}" \
    "]+"

static const struct pre_family families[] = {
    { "default", { PUNCTUATION, GPT2, DIGITS, THREE_DIGITS } },
    { "gpt-2 phi-2 mpt olmo jais gigachat a.x-4.0 mellum exaone4 trillion granite-docling "
      "jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe modern-bert",
      { GPT2 } },
    { "smollm starcoder refact command-r codeshell exaone minerva-7b", { DIGIT, GPT2 } },
    { "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
      { GPT4("\\p{N}{1,3}") }, .ignore_merges = true, .add_bos = true },
    { "dbrx smaug-bpe chatglm-bpe glm4", { GPT4("\\p{N}{1,3}") } },
    { "qwen2 stablelm2 hunyuan megrez deepseek-r1-qwen kormo grok-2", { GPT4("\\p{N}") } },
    { "qwen35", { QWEN35 } },
    { "seed-coder", { SEED_CODER } },
    { "bailingmoe bailingmoe2 llada-moe", { BAILING } },
    { "tekken", { TEKKEN }, .ignore_merges = true, .add_bos = true },
    { "gpt-4o llama4 minimax-m2", { GPT4O } },
    { "falcon", { PUNCTUATION_FALCON, GPT2, THREE_DIGITS } },
    { "deepseek-v3 hunyuan-dense", { "\\p{N}{1,3}", CJK_DEEPSEEK3, DEEPSEEK3 } },
    { "deepseek-llm", { LINE_BREAK, CASED_DEEPSEEK, PUNCTUATION_DEEPSEEK, SPACES_LAST,
                        CJK_DEEPSEEK, DIGITS }, .keeps_uncased = true },
    { "deepseek-coder", { LINE_BREAK, SPACE "?\\p{L}+", SPACE "?\\p{P}+", CJK_DEEPSEEK, DIGIT } },
    { "poro-chat bloom gpt3-finnish", { BLOOM } },
    { "viking", { BLOOM, DIGIT } },
};
enum { FAMILY_COUNT = sizeof families / sizeof families[0] };

/* The expressions are ours and need few steps a character: these only bound a mistake in them. */
enum { MATCH_STEPS_MAX = 1 << 30, MATCH_DEPTH_MAX = 10000, MATCH_HEAP_KIB_MAX = 64 << 10 };

const char *splitter_families(size_t n)
{
    return n < FAMILY_COUNT ? families[n].names : NULL;
}

static bool has_name(const char *names, struct gguf_text name)
{
    while (*names) {
        size_t bytes = strcspn(names, " ");
        if (bytes == name.bytes && !memcmp(names, name.data, bytes)) return true;
        names += bytes + strspn(names + bytes, " ");
    }
    return false;
}

static enum err family_find(const struct pre_family **out, struct gguf_text name, struct why *why)
{
    for (size_t i = 0; i < FAMILY_COUNT; i++) {
        if (has_name(families[i].names, name)) {
            *out = &families[i];
            return OK;
        }
    }
    struct buf known = { 0 };
    for (size_t i = 0; i < FAMILY_COUNT; i++) buf_print(&known, " %s", families[i].names);
    why_set(why, ERR_UNSUPPORTED, "pre-tokenizer \"%.*s\" is not known; known are:%s",
            (int)(name.bytes < 64 ? name.bytes : 64), name.data, known.data);
    buf_release(&known);
    return ERR_UNSUPPORTED;
}

static pcre2_code *pattern_compile(const char *pattern)
{
    int number;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY, &number, &at,
                                     NULL);
    CHECK(code);
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);   /* without it, the interpreter does the same */
    return code;
}

enum err splitter_open(struct splitter *s, struct gguf_text name, struct why *why)
{
    *s = (struct splitter){ 0 };
    enum err e = family_find(&s->family, name, why);
    if (e != OK) return e;
    while (s->code_count < SPLIT_PATTERNS_MAX && s->family->patterns[s->code_count]) {
        s->codes[s->code_count] = pattern_compile(s->family->patterns[s->code_count]);
        s->code_count++;
    }
    s->limits = pcre2_match_context_create(NULL);
    CHECK(s->limits);
    pcre2_set_match_limit(s->limits, MATCH_STEPS_MAX);
    pcre2_set_depth_limit(s->limits, MATCH_DEPTH_MAX);
    pcre2_set_heap_limit(s->limits, MATCH_HEAP_KIB_MAX);
    return OK;
}

void splitter_release(struct splitter *s)
{
    for (size_t i = 0; i < s->code_count; i++) pcre2_code_free(s->codes[i]);
    pcre2_match_context_free(s->limits);
    *s = (struct splitter){ 0 };
}

struct split_run {
    const struct splitter *s;
    pcre2_match_data *match;
    split_piece_fn *piece;
    void *owner;
};

/* `text` through the expressions from `level` on: depth is bounded by SPLIT_PATTERNS_MAX. */
static enum err split_level(const struct split_run *run, size_t level, const char *text,
                            size_t bytes)
{
    if (level == run->s->code_count) return run->piece(run->owner, text, bytes);
    size_t at = 0;
    while (at < bytes) {
        /* Without a match (or past a limit) the rest is one piece: correct for the former, and
         * still all of the text for the latter. */
        size_t from = bytes, to = bytes;
        if (pcre2_match(run->s->codes[level], (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK,
                        run->match, run->s->limits) > 0) {
            const PCRE2_SIZE *pair = pcre2_get_ovector_pointer(run->match);
            from = pair[0];
            to = pair[1];
            CHECK(from >= at && to > from);
        }
        enum err e = OK;
        if (from > at) e = split_level(run, level + 1, text + at, from - at);
        if (e == OK && to > from) e = split_level(run, level + 1, text + from, to - from);
        if (e != OK) return e;
        at = to;
    }
    return OK;
}

enum err splitter_run(const struct splitter *s, pcre2_match_data *match, const char *text,
                      size_t bytes, split_piece_fn *piece, void *owner)
{
    struct split_run run = { s, match, piece, owner };
    return split_level(&run, 0, text, bytes);
}
