/* ctl/bench.c - rankservectl bench: flags, calibration of text prompts, the run; see bench.h. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "ctl/bench.h"
#include "ctl/ctl.h"
#include "ctl/endpoint.h"
#include "ctl/http_client.h"

enum { CALIBRATION_WORDS = 400 };

static double number(const char *flag, const char *text, double initial, double min, double max)
{
    if (!text) return initial;
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end || errno || !(value >= min && value <= max)) {
        die("bench: --%s %.40s: a number from %.15g to %.15g is wanted", flag, text, min, max);
    }
    return value;
}

static uint64_t count(const char *flag, const char *text, uint64_t initial, uint64_t min,
                      uint64_t max)
{
    if (!text) return initial;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (end == text || *text == '-' || *end || errno || value < min || value > max) {
        die("bench: --%s %.40s: a whole number from %llu to %llu is wanted", flag, text,
            (unsigned long long)min, (unsigned long long)max);
    }
    return value;
}

struct texts {                        /* flags as they were given */
    const char *url, *endpoint_file, *key_file, *model, *endpoint;
    const char *num_prompts, *input_len, *output_len, *prefix_len, *token_range;
    const char *concurrency, *rate, *burstiness;
    const char *long_prompts, *long_input_len, *long_output_len, *long_interval;
    const char *goodput, *seed, *duration, *warmup, *result_file;
    bool text, ignore_eos;
};

static int read_flags(struct texts *t, int argc, char **argv)
{
    const struct flag flags[] = {
        { "url", &t->url, NULL, "URL", "the server [http://127.0.0.1:8000]; or unix:PATH" },
        { "endpoint-file", &t->endpoint_file, NULL, "FILE", "where `up` wrote how it is reached" },
        { "api-key-file", &t->key_file, NULL, "FILE", "its first line is sent" },
        { "model", &t->model, NULL, "NAME", "[the first of /v1/models]" },
        { "endpoint", &t->endpoint, NULL, "NAME", "completions or chat [completions]" },
        { "num-prompts", &t->num_prompts, NULL, "N", "requests [100]" },
        { "input-len", &t->input_len, NULL, "N", "tokens of a prompt [200]" },
        { "output-len", &t->output_len, NULL, "N", "tokens of an answer, at most [64]" },
        { "shared-prefix-len", &t->prefix_len, NULL, "N", "tokens before those, in all alike [0]" },
        { "text", NULL, &t->text, NULL, "completions: prompts as words, not as token ids" },
        { "token-range", &t->token_range, NULL, "LO:HI", "ids are drawn from these [1000:29999]" },
        { "ignore-eos", NULL, &t->ignore_eos, NULL, "answers of full length" },
        { "max-concurrency", &t->concurrency, NULL, "N", "requests at once [all; 4 streams]" },
        { "request-rate", &t->rate, NULL, "R", "a second, at random times [as fast as they end]" },
        { "burstiness", &t->burstiness, NULL, "B", "1: Poisson; less: in bursts [1]" },
        { "long-prompts", &t->long_prompts, NULL, "N", "streams, disturbed by N long prompts" },
        { "long-input-len", &t->long_input_len, NULL, "N", "tokens of a long prompt [4000]" },
        { "long-output-len", &t->long_output_len, NULL, "N", "tokens of its answer [8]" },
        { "long-interval", &t->long_interval, NULL, "S", "seconds between long prompts [2]" },
        { "goodput", &t->goodput, NULL, "LIMITS", "ttft:MS tpot:MS itl:MS (longest) e2el:MS" },
        { "seed", &t->seed, NULL, "N", "of prompts and times; a repeated one meets caches [0]" },
        { "warmup", &t->warmup, NULL, "N", "requests before, not counted [0]" },
        { "duration", &t->duration, NULL, "S", "seconds after which all is cut off [600]" },
        { "result-file", &t->result_file, NULL, "FILE", "figures as JSON" },
        { NULL },
    };
    return flags_read(flags, "bench [options]", argc, argv);
}

static void read_goodput(struct bench_options *o, const char *first, int words, char **argv)
{
    if (!first && words) die("bench: unexpected word '%.60s'", argv[1]);
    for (int i = 0; first && i <= words; i++) {
        const char *text = i ? argv[i] : first;
        if (!slo_parse(&o->slo, text)) {
            die("bench: --goodput %.60s: ttft:MS, tpot:MS, itl:MS or e2el:MS is wanted", text);
        }
    }
}

static void read_token_range(struct bench_options *o, const char *text)
{
    unsigned long long lo = 1000, hi = 29999;
    char rest;
    if (text && sscanf(text, "%llu:%llu%c", &lo, &hi, &rest) != 2) lo = 1, hi = 0;
    if (lo > hi || hi >= VOCAB_MAX) {
        die("bench: --token-range %.40s: LO:HI below %d is wanted", text, VOCAB_MAX);
    }
    o->token_first = (uint32_t)lo;
    o->token_last = (uint32_t)hi;
}

static void read_endpoint(struct bench_options *o, const char *name)
{
    o->chat = name && strcmp(name, "chat") == 0;
    if (name && !o->chat && strcmp(name, "completions") != 0) {
        die("bench: --endpoint %.40s: completions or chat is wanted", name);
    }
}

static double read_rate(const char *text)
{
    if (text && strcmp(text, "inf") == 0) text = NULL;
    return number("request-rate", text, 0, 1e-3, 1e5);
}

static void read_options(struct bench_options *o, const struct texts *t)
{
    read_endpoint(o, t->endpoint);
    read_token_range(o, t->token_range);
    o->text_prompts = t->text;
    o->ignore_eos = t->ignore_eos;
    o->num_prompts = (uint32_t)count("num-prompts", t->num_prompts, 100, 1, BENCH_PROMPTS_MAX);
    o->input_len = (uint32_t)count("input-len", t->input_len, 200, 1, BENCH_TOKENS_MAX);
    o->output_len = (uint32_t)count("output-len", t->output_len, 64, 1, BENCH_TOKENS_MAX);
    o->shared_prefix_len = (uint32_t)count("shared-prefix-len", t->prefix_len, 0, 0,
                                           BENCH_TOKENS_MAX);
    o->long_prompts = (uint32_t)count("long-prompts", t->long_prompts, 0, 1,
                                      BENCH_CONCURRENCY_MAX);
    o->long_input_len = (uint32_t)count("long-input-len", t->long_input_len, 4000, 1,
                                        BENCH_TOKENS_MAX);
    o->long_output_len = (uint32_t)count("long-output-len", t->long_output_len, 8, 1,
                                         BENCH_TOKENS_MAX);
    o->long_interval_s = number("long-interval", t->long_interval, 2, 0, 3600);
    uint32_t at_once = o->num_prompts < BENCH_CONCURRENCY_MAX ? o->num_prompts
                                                              : BENCH_CONCURRENCY_MAX;
    o->max_concurrency = (uint32_t)count("max-concurrency", t->concurrency,
                                         o->long_prompts ? 4 : at_once, 1, BENCH_CONCURRENCY_MAX);
    o->request_rate = read_rate(t->rate);
    o->burstiness = number("burstiness", t->burstiness, 1, 0.01, 1000);
    o->seed = count("seed", t->seed, 0, 0, UINT64_MAX >> 1);
    o->warmup = (uint32_t)count("warmup", t->warmup, 0, 0, BENCH_PROMPTS_MAX);
    o->duration_s = number("duration", t->duration, 600, 0.1, BENCH_SECONDS_MAX);
    if (o->long_prompts && o->request_rate > 0) {
        die("bench: --long-prompts and --request-rate do not go together");
    }
}

/* Tokens that the server makes of `text`; 0 when it cannot say.  vLLM's name of the text and
 * llama-server's are both given. */
static size_t ask_token_count(const struct endpoint *at, const char *model, const char *text)
{
    json_t *o = json_pack("{s:s, s:s, s:s}", "model", model, "prompt", text, "content", text);
    char *body = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    if (!body) return 0;
    struct http_request r = { .base = at->url, .uds = at->uds, .path = "/tokenize",
                              .api_key = at->api_key, .body = body, .timeout_s = 10 };
    struct http_answer a;
    struct why why;
    size_t tokens = 0;
    if (http_ask(&r, &a, &why) == OK && a.status == 200) {
        o = json_loadb(a.body.data, a.body.size, 0, NULL);
        tokens = json_array_size(json_object_get(o, "tokens"));
        json_decref(o);
    }
    buf_release(&a.body);
    free(body);
    return tokens;
}

static double calibrate(const struct endpoint *at, const struct bench_options *o)
{
    if (!o->chat && !o->text_prompts) return 1;
    struct buf text = { 0 };
    work_text(o->seed, 0, CALIBRATION_WORDS, &text);
    size_t tokens = ask_token_count(at, o->model, text.data);
    buf_release(&text);
    if (!tokens) fprintf(stderr, "bench: no /tokenize there: a word is taken for a token\n");
    return tokens ? (double)CALIBRATION_WORDS / (double)tokens : 1;
}

static void write_result(const char *path, const struct bench_options *o, struct bench_result *r)
{
    struct why why;
    char *text = bench_json(o, r);
    if (write_file_atomic(path, text, strlen(text), &why) != OK) die("bench: %s", why.text);
    free(text);
}

int ctl_bench(int argc, char **argv)
{
    struct texts t = { 0 };
    struct bench_options o = { 0 };
    struct bench_result result = { 0 };
    struct endpoint at;
    struct why why;
    int words = read_flags(&t, argc, argv);
    read_goodput(&o, t.goodput, words, argv);
    read_options(&o, &t);
    endpoint_find(&at, t.url, t.endpoint_file, t.key_file);
    o.model = t.model ? t.model : at.model ? at.model : endpoint_model(&at, &why);
    if (!o.model) die("bench: %s", why.text);
    struct work work = { .o = &o, .words_per_token = calibrate(&at, &o) };
    bench_run(&at, &work, &result);
    bench_print(&o, &result);
    if (t.result_file) write_result(t.result_file, &o, &result);
    bool measured = result.completed || result.long_ttft.count;
    bool ok = measured && !result.failed && !result.interrupted;
    bench_result_release(&result);
    return ok ? 0 : 1;
}
