/* ctl/bench_work.c - what is asked, and when; see bench.h.  All of it is a function of the seed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/check.h"
#include "common/splitmix.h"
#include "ctl/bench.h"

/* Short common words: nearly always one token each with the blank before them. */
static const char *const words[] = {
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "are", "as", "with",
    "his", "they", "at", "be", "this", "have", "from", "or", "one", "had", "by", "word", "but",
    "not", "what", "all", "were", "we", "when", "your", "can", "said", "there", "use", "an", "each",
    "which", "she", "do", "how", "their", "if", "will", "up", "other", "about", "out", "many",
    "then", "them", "these", "so", "some", "her", "would", "make", "like", "him", "into", "time",
    "has", "look", "two", "more", "write", "go", "see", "number", "no", "way", "could", "people",
    "my", "than", "first", "water", "been", "call", "who", "oil", "its", "now", "find", "long",
    "down", "day", "did", "get", "come", "made", "may", "part", "over", "new", "sound", "take",
    "only", "little", "work", "know", "place", "year", "live", "me", "back", "give", "most", "very",
    "after", "thing", "our", "just", "name", "good", "man", "think", "say", "great", "where",
    "help", "through", "much", "before", "line",
};
enum { WORD_COUNT = sizeof words / sizeof *words };

/* In (0, 1). */
static double draw_unit(uint64_t *random)
{
    return splitmix_unit(random) + 0x1p-54;
}

static double draw_normal(uint64_t *random)
{
    double radius = sqrt(-2 * log(draw_unit(random)));
    return radius * cos(6.283185307179586 * draw_unit(random));
}

/* Marsaglia and Tsang 2000; below shape 1 by the usual power of a uniform. */
double draw_gamma(uint64_t *random, double shape)
{
    if (shape < 1) return draw_gamma(random, shape + 1) * pow(draw_unit(random), 1 / shape);
    double a = shape - 1.0 / 3, c = 1 / sqrt(9 * a);
    for (;;) {
        double x = draw_normal(random), v = 1 + c * x;
        if (v <= 0) continue;
        v = v * v * v;
        if (log(draw_unit(random)) < x * x / 2 + a - a * v + a * log(v)) return a * v;
    }
}

double draw_interval(uint64_t *random, double request_rate, double burstiness)
{
    return draw_gamma(random, burstiness) / (request_rate * burstiness);
}

static uint64_t state_for(uint64_t seed, uint32_t index)
{
    uint64_t random = seed ^ (uint64_t)index * 0xd1342543de82ef95u;
    splitmix_next(&random);
    return random;
}

void work_text(uint64_t seed, uint32_t index, uint32_t count, struct buf *out)
{
    uint64_t random = state_for(seed, index);
    for (uint32_t i = 0; i < count; i++) {
        buf_char(out, ' ');
        buf_text(out, words[splitmix_next(&random) % WORD_COUNT]);
    }
}

static void add_ids(const struct bench_options *o, uint32_t index, uint32_t count, json_t *out)
{
    uint64_t random = state_for(o->seed, index);
    uint32_t range = o->token_last - o->token_first + 1;
    for (uint32_t i = 0; i < count; i++) {
        json_array_append_new(out, json_integer(o->token_first + splitmix_next(&random) % range));
    }
}

static uint32_t own_len(const struct bench_options *o, uint32_t index)
{
    return index & WORK_LONG ? o->long_input_len : o->input_len;
}

/* The shared prefix is the text of an index that no request has. */
static json_t *prompt_ids(const struct bench_options *o, uint32_t index)
{
    json_t *ids = json_array();
    if (!(index & WORK_LONG)) add_ids(o, UINT32_MAX, o->shared_prefix_len, ids);
    add_ids(o, index, own_len(o, index), ids);
    return ids;
}

static uint32_t word_count(const struct work *w, uint32_t tokens)
{
    return (uint32_t)(tokens * w->words_per_token + 0.5);
}

static json_t *prompt_text(const struct work *w, uint32_t index)
{
    const struct bench_options *o = w->o;
    struct buf text = { 0 };
    if (!(index & WORK_LONG)) {
        work_text(o->seed, UINT32_MAX, word_count(w, o->shared_prefix_len), &text);
    }
    work_text(o->seed, index, word_count(w, own_len(o, index)), &text);
    json_t *out = json_stringn(text.size ? text.data : "", text.size);
    buf_release(&text);
    return out;
}

char *work_body(const struct work *w, uint32_t index)
{
    const struct bench_options *o = w->o;
    uint32_t output = index & WORK_LONG ? o->long_output_len : o->output_len;
    json_t *body = json_pack("{s:s, s:i, s:i, s:b, s:{s:b}}", "model", o->model, "max_tokens",
                             (int)output, "temperature", 0, "stream", 1, "stream_options",
                             "include_usage", 1);
    if (!body) die("bench: the model's name is not UTF-8");
    if (o->ignore_eos) json_object_set_new(body, "ignore_eos", json_true());
    if (o->chat) {
        json_object_set_new(body, "messages", json_pack("[{s:s, s:o}]", "role", "user", "content",
                                                        prompt_text(w, index)));
    } else {
        json_object_set_new(body, "prompt", o->text_prompts ? prompt_text(w, index)
                                                            : prompt_ids(o, index));
    }
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}
