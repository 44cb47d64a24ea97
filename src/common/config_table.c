/* common/config_table.c - the one option table, and values to and from text. */
#include "common/config_table.h"

#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/limits.h"
#include "common/suggest.h"

#define JOB PROGRAM_RANKSERVE
#define WEB PROGRAM_GATEWAY
#define CTL PROGRAM_CTL
#define EVERY (JOB | WEB | CTL)
#define MODEL "The model"
#define RANKS "The job"
#define ENGINE "The engine"
#define CACHE "The prefix cache (as in a CachePolicy)"
#define VIEW "The view that several jobs share (behind rankserve-gateway --jobs)"
#define HTTP "HTTP"
#define INNER "Between the programs (set by `rankservectl up` and by launch scripts)"

#define POLICIES                                                                                 \
    "cost cache-aware load-based latency-optimized random round-robin llm-d-weighted llm-d-affinity"

#define AT(field) offsetof(struct config, field)
#define ROW(option_name, in, of_kind, for_programs, field, value)                                \
    .name = option_name, .group = in, .kind = of_kind, .programs = for_programs,                 \
    .offset = AT(field), .initial = value
#define TEXT(name, in, programs, field, value) ROW(name, in, OPTION_TEXT, programs, field, value)
#define SWITCH(name, in, programs, field, value)                                                 \
    ROW(name, in, OPTION_SWITCH, programs, field, value)
#define CHOICE(name, in, programs, field, value, words)                                          \
    ROW(name, in, OPTION_CHOICE, programs, field, value), .choices = words
#define COUNT(name, in, programs, field, value, least, most)                                     \
    ROW(name, in, OPTION_COUNT, programs, field, value), .min = least, .max = most

static const struct option table[] = {
    { TEXT("model", MODEL, EVERY, model, ""), .metavar = "FILE|URI",
      .help = "a GGUF file or file:// URI; without it, the default model (rankservectl pull)" },
    { TEXT("served-model-name", MODEL, WEB | CTL, served_model_name, ""), .metavar = "NAME",
      .help = "the name that clients use; default: from the file's name" },
    { COUNT("max-model-len", MODEL, EVERY, max_model_len, "0", 0, SEQ_TOKENS_MAX),
      .metavar = "TOKENS", .zero_word = "auto",
      .help = "prompt and output together; auto: what the model was trained for, if it fits" },
    { TEXT("chat-template", MODEL, WEB | CTL, chat_template, ""), .metavar = "FILE",
      .help = "a Jinja file to use in place of the model's own template" },

    { COUNT("prefill", RANKS, JOB | CTL, prefill, "0", 0, WORKER_COUNT_MAX), .metavar = "N",
      .help = "workers that compute prompts and hand the KV cache on" },
    { COUNT("decode", RANKS, JOB | CTL, decode, "0", 0, WORKER_COUNT_MAX), .metavar = "N",
      .help = "workers that generate" },
    { COUNT("both", RANKS, JOB | CTL, both, "0", 0, WORKER_COUNT_MAX), .metavar = "N",
      .help = "workers that do both; 1 when no worker is asked for" },
    { COUNT("spares", RANKS, JOB | CTL, spares, "0", 0, WORKER_COUNT_MAX), .metavar = "N",
      .help = "workers that wait, weights loaded, for a lost worker's place" },
    { COUNT("threads", RANKS, JOB | CTL, threads, "auto", 1, THREAD_COUNT_MAX), .metavar = "N",
      .zero_word = "auto", .help = "compute threads of each worker; auto: the cores it may use" },
    { CHOICE("backend", RANKS, JOB | CTL, backend, "cpu", "cpu cuda null"),
      .help = "what computes" },
    { CHOICE("policy", RANKS, JOB | CTL, policy, "cost", POLICIES), .metavar = "NAME",
      .help = "how requests are placed on workers: " POLICIES },
    { CHOICE("decode-policy", RANKS, JOB | CTL, decode_policy, "same", "same " POLICIES),
      .metavar = "NAME", .help = "how the worker that generates is chosen" },
    { SWITCH("enable-pd-role-switch", RANKS, JOB | CTL, enable_pd_role_switch, "true"),
      .help = "workers go from prefill to decode, and back, when the mix of work changes" },
    { ROW("pd-role-switch-interval", RANKS, OPTION_TIME, JOB | CTL, pd_role_switch_interval_ms,
          "6s"),
      .min = 1, .max = 8.64e7, .metavar = "TIME",
      .help = "between two such switches, at least; a lack must last for a third of it, and what "
              "a worker does not end within it goes on elsewhere" },
    { TEXT("labels", RANKS, EVERY, labels, ""), .metavar = "K=V,...",
      .help = "what a CachePolicy may select this service by" },
    { COUNT("max-queue", RANKS, EVERY, max_queue, "1024", 1, REQ_COUNT_MAX), .metavar = "N",
      .help = "requests that may wait; more are answered with 429" },
    { COUNT("drain-timeout-s", RANKS, EVERY, drain_timeout_s, "30", 0, 86400),
      .metavar = "SECONDS", .help = "how long running requests may take to end at a stop" },
    { CHOICE("log-level", RANKS, EVERY, log_level, "info", "error warn info debug"),
      .help = "what is written to standard error" },

    { COUNT("block-size", ENGINE, EVERY, block_size, "16", 8, KV_BLOCK_TOKENS_MAX),
      .metavar = "TOKENS", .help = "tokens in a KV block; a power of two" },
    { ROW("kv-cache-memory-bytes", ENGINE, OPTION_BYTES, JOB | CTL, kv_cache_memory_bytes, "0"),
      .min = 0, .max = 1ull << 44, .metavar = "BYTES", .zero_word = "auto",
      .help = "KV cache of each worker; 512MiB, 2G, ...; auto: 1GiB, on a GPU what "
              "gpu-memory-utilization leaves" },
    { CHOICE("kv-cache-dtype", ENGINE, EVERY, kv_cache_dtype, "auto",
             "auto f16 float16 f32 float32 int8 fp8 fp8_e4m3"),
      .help = "how keys and values are stored; auto: f16" },
    { CHOICE("kv-connector", ENGINE, JOB | CTL, kv_connector, "auto", "auto nccl mpi"),
      .help = "how KV goes from worker to worker; auto: from GPU to GPU by NCCL where that is "
              "possible, else through the host by MPI" },
    { COUNT("max-num-seqs", ENGINE, JOB | CTL, max_num_seqs, "128", 1, STEP_SEQS_MAX),
      .metavar = "N", .help = "sequences in one step" },
    { COUNT("max-num-batched-tokens", ENGINE, JOB | CTL, max_num_batched_tokens, "512", 1,
            STEP_TOKENS_MAX),
      .metavar = "TOKENS", .help = "tokens computed in one step, over all sequences" },
    { COUNT("long-prefill-token-threshold", ENGINE, JOB | CTL, long_prefill_token_threshold, "0",
            0, SEQ_TOKENS_MAX),
      .metavar = "TOKENS", .help = "a longer prompt takes at most this many of a step; 0: all" },
    { COUNT("step-time-target-ms", ENGINE, JOB | CTL, step_time_target_ms, "0", 0, 60000),
      .metavar = "MS", .zero_word = "auto",
      .help = "prompts beside decodes take no more of a step than ends in time; auto: twice what "
              "the decodes take alone" },
    { SWITCH("enable-chunked-prefill", ENGINE, JOB | CTL, enable_chunked_prefill, "true"),
      .help = "compute long prompts in pieces, between the steps of others" },
    { SWITCH("enable-prefix-caching", ENGINE, JOB | CTL, enable_prefix_caching, "true"),
      .help = "keep KV blocks and reuse them for equal beginnings" },
    { COUNT("max-prefix-length", CACHE, JOB | CTL, max_prefix_length, "0", 0, SEQ_TOKENS_MAX),
      .metavar = "TOKENS", .zero_word = "none", .help = "only so much of a prompt is kept" },
    { ROW("cache-ttl", CACHE, OPTION_TIME, JOB | CTL, cache_ttl_ms, "0"), .max = 3.2e10,
      .metavar = "TIME", .zero_word = "none",
      .help = "blocks that nobody used for this long are dropped, like 1h" },
    { COUNT("cache-max-entries", CACHE, JOB | CTL, cache_max_entries, "0", 0, KV_BLOCK_COUNT_MAX),
      .metavar = "BLOCKS", .zero_word = "none",
      .help = "a worker keeps at most so many blocks that nobody uses" },
    { ROW("cache-memory-threshold", CACHE, OPTION_NUMBER, JOB | CTL, cache_memory_threshold, "1"),
      .min = 0, .max = 1, .metavar = "SHARE",
      .help = "of a worker's KV memory; above it, blocks that nobody uses are dropped" },
    { ROW("cache-locality-weight", CACHE, OPTION_NUMBER, JOB | CTL, cache_locality_weight, "0"),
      .min = 0, .max = 1, .metavar = "WEIGHT",
      .help = "how much a recompute counts against ..." },
    { ROW("latency-weight", CACHE, OPTION_NUMBER, JOB | CTL, latency_weight, "0"),
      .min = 0, .max = 1, .metavar = "WEIGHT",
      .help = "... a wait, when a worker is chosen; both 0: equally" },
    { ROW("gpu-memory-utilization", ENGINE, OPTION_NUMBER, JOB | CTL, gpu_memory_utilization,
          "0.92"),
      .min = 0.01, .max = 1, .metavar = "FRACTION", .help = "of a GPU's memory (backend cuda)" },
    { CHOICE("linear-backend", ENGINE, JOB | CTL, linear_backend, "auto", "auto rankserve cublas"),
      .help = "products on a GPU; auto: rankserve, whose bits do not depend on the batch; cublas: "
              "faster prompts, and they do" },
    { COUNT("tensor-parallel-size", ENGINE, JOB | CTL, tensor_parallel_size, "1", 1, 1024),
      .metavar = "N", .help = "ranks that share one worker's weights; only 1 for now" },
    { COUNT("pipeline-parallel-size", ENGINE, JOB | CTL, pipeline_parallel_size, "1", 1, 1024),
      .metavar = "N", .help = "only 1 is accepted" },
    { CHOICE("activations", ENGINE, JOB | CTL, activations, "auto", "auto float"),
      .help = "float: the slow plain-C path that the kernels are compared with" },
    { COUNT("seed", ENGINE, EVERY, seed, "0", 0, 9007199254740992.0), .metavar = "N",
      .zero_word = "random", .help = "of requests that name none" },

    { TEXT("redis", VIEW, EVERY, redis, ""), .metavar = "ADDRESS",
      .help = "say in Redis which prompts' KV blocks a job holds, and ask there: "
              "redis://[USER@]HOST[:PORT][,...][/DB], several hosts being of one cluster, "
              "rediss:// for TLS, or unix:PATH" },
    { TEXT("redis-password-file", VIEW, EVERY, redis_password_file, ""), .metavar = "FILE",
      .help = "one line, mode 0600" },
    { TEXT("redis-cacert", VIEW, EVERY, redis_cacert, ""), .metavar = "FILE",
      .help = "with rediss://: PEM of the authorities to believe; default: the system's" },
    { TEXT("redis-cert", VIEW, EVERY, redis_cert, ""), .metavar = "FILE",
      .help = "with rediss://: PEM of our own certificate, where Redis wants one" },
    { TEXT("redis-key", VIEW, EVERY, redis_key, ""), .metavar = "FILE",
      .help = "its private key, PEM, mode 0600" },
    { TEXT("redis-sni", VIEW, EVERY, redis_sni, ""), .metavar = "NAME",
      .help = "with rediss://: the name that every server's certificate must have; default: the "
              "host's" },
    { SWITCH("redis-insecure", VIEW, EVERY, redis_insecure, "false"),
      .help = "with rediss://: believe whoever answers" },
    { TEXT("kv-secret-file", VIEW, EVERY, kv_secret_file, ""), .metavar = "FILE",
      .help = "64 hex digits, mode 0600, the same for all jobs and gateways: blocks' keys are made "
              "from it; default: from the link's secret, which each job has its own of" },

    { TEXT("listen", HTTP, WEB | CTL, listen, "127.0.0.1:8000"), .metavar = "HOST:PORT",
      .help = "where clients connect; port 0: any free one" },
    { TEXT("uds", HTTP, WEB | CTL, uds, ""), .metavar = "PATH",
      .help = "also listen on this Unix socket" },
    { TEXT("jobs", HTTP, WEB, jobs, ""), .metavar = "DIR",
      .help = "serve all jobs with an endpoint file in this directory, as they come and go" },
    { TEXT("jobs-name", HTTP, WEB, jobs_name, ""), .metavar = "NAME",
      .help = "with --jobs: only jobs of this name" },
    { TEXT("endpoint-file", HTTP, WEB | CTL, endpoint_file, ""), .metavar = "FILE",
      .help = "where to write, as JSON, how this service is reached" },
    { TEXT("api-key-file", HTTP, WEB | CTL, api_key_file, ""), .metavar = "FILE",
      .help = "keys that clients must send, one a line, mode 0600; or RANKSERVE_API_KEY" },
    { COUNT("max-logprobs", HTTP, WEB | CTL, max_logprobs, "20", 0, TOP_LOGPROBS_MAX),
      .metavar = "N", .help = "alternatives a request may ask for at each position" },
    { SWITCH("debug-headers", HTTP, WEB | CTL, debug_headers, "false"),
      .help = "say in each answer's headers which ranks served it" },

    { TEXT("run-dir", INNER, EVERY, run_dir, ""), .metavar = "DIR",
      .help = "sockets, secret and status of one job" },
    { TEXT("link", INNER, EVERY, link, ""), .metavar = "ADDRESS",
      .help = "where rank 0 listens and the gateway connects: a path or HOST:PORT" },
    { TEXT("link-listen", INNER, JOB | CTL, link_listen, ""), .metavar = "HOST:PORT",
      .help = "rank 0 also listens here, for gateways on other hosts; port 0: any free one" },
    { TEXT("secret-file", INNER, EVERY, secret_file, ""), .metavar = "FILE",
      .help = "the link's secret: 64 hex digits, mode 0600" },
    { TEXT("status-file", INNER, EVERY, status_file, ""), .metavar = "FILE",
      .help = "where rank 0 writes how the job ended" },
    { TEXT("name", INNER, CTL, name, ""), .metavar = "NAME",
      .help = "the service's name in its endpoint file; jobs that take turns share it" },
    { TEXT("job-id", INNER, EVERY, job_id, ""), .metavar = "ID", .help = "names this job" },
};

const struct option *option_table(size_t *count_out)
{
    *count_out = sizeof table / sizeof *table;
    return table;
}

static bool name_is(const char *name, const char *text)
{
    for (; *name && *text; name++, text++) {
        if (*name != (*text == '_' ? '-' : *text)) return false;
    }
    return *name == *text;
}

const struct option *option_find(const char *name)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (name_is(table[i].name, name)) return &table[i];
    }
    return NULL;
}

void option_environment_name(const struct option *o, char *out, size_t bytes)
{
    snprintf(out, bytes, "RANKSERVE_%s", o->name);
    for (char *at = out; *at; at++) *at = *at == '-' ? '_' : (char)toupper((unsigned char)*at);
}

/* Kept in a chain: whoever looks for leaks sees that these are meant to stay.  Equal texts are kept
 * once, and any thread may come: a gateway reads policies for as long as it runs. */
const char *config_keep(const char *text, size_t bytes)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct kept {
        struct kept *next;
        char text[];
    } *all;
    pthread_mutex_lock(&lock);
    struct kept *k = all;
    while (k && !(strlen(k->text) == bytes && memcmp(k->text, text, bytes) == 0)) k = k->next;
    if (!k) {
        k = mem_alloc(sizeof *k + bytes + 1);
        memcpy(k->text, text, bytes);
        k->next = all;
        all = k;
    }
    pthread_mutex_unlock(&lock);
    return k->text;
}

/* How much a suffix multiplies: as vLLM has it, small letters are powers of 1000, capitals of
 * 1024; for bytes also Ki/KiB and kB/KB, as Kubernetes and people write it.  0: no such suffix. */
static double suffix_scale(const char *suffix, bool bytes)
{
    static const char letters[] = "kmgt";
    if (!*suffix) return 1;
    if (bytes && strcmp(suffix, "B") == 0) return 1;
    const char *at = strchr(letters, tolower((unsigned char)suffix[0]));
    if (!at) return 0;
    double decimal = 1, binary = 1;
    for (long i = 0; i <= at - letters; i++, decimal *= 1000, binary *= 1024) { }
    const char *rest = suffix + 1;
    if (!*rest) return islower((unsigned char)suffix[0]) ? decimal : binary;
    if (bytes && (strcmp(rest, "i") == 0 || strcmp(rest, "iB") == 0)) return binary;
    if (bytes && strcmp(rest, "B") == 0) return decimal;
    return 0;
}

/* "8192", "8k", "1.5k", "2GiB"; false when it is not that, or not a whole number. */
static bool parse_count(const char *text, bool bytes, double *out)
{
    if (!isdigit((unsigned char)*text) || strlen(text) > 30) return false;
    char *end;
    bool fraction = false;
    for (const char *at = text; isdigit((unsigned char)*at) || *at == '.'; at++) {
        fraction |= *at == '.';
    }
    if (text[0] == '0' && tolower((unsigned char)text[1]) == 'x') return false;
    if (strpbrk(text, "eE")) return false;
    *out = strtod(text, &end);
    double scale = suffix_scale(end, bytes);
    if (scale == 0 || (fraction && scale == 1)) return false;
    *out *= scale;
    return *out == (double)(uint64_t)(*out < 1e18 ? *out : 0) || *out >= 1e18;
}

static void print_number(char *out, size_t bytes, double value)
{
    if (value == (double)(uint64_t)value) {
        snprintf(out, bytes, "%llu", (unsigned long long)value);
    } else {
        snprintf(out, bytes, "%g", value);
    }
}

static enum err range_error(const struct option *o, const char *label, const char *text,
                            struct why *why)
{
    char low[32], high[32];
    print_number(low, sizeof low, o->min);
    print_number(high, sizeof high, o->max);
    bool word = o->zero_word && o->min > 0;
    return why_set(why, ERR_LIMIT, "%s is %.40s; it must be from %s to %s%s%s", label, text, low,
                   high, word ? ", or " : "", word ? o->zero_word : "");
}

static enum err set_count(struct config *c, const struct option *o, const char *label,
                          const char *text, struct why *why)
{
    double value;
    if (o->zero_word && strcmp(text, o->zero_word) == 0) {
        *(uint64_t *)((char *)c + o->offset) = 0;
        return OK;
    }
    if (!parse_count(text, o->kind == OPTION_BYTES, &value)) {
        const char *hint = o->kind == OPTION_BYTES ? "1073741824, 512MiB or 2G" : "8192, 8k or 8K";
        bool negative = *text == '-' && isdigit((unsigned char)text[1]);
        if (negative) return range_error(o, label, text, why);
        return why_set(why, ERR_FORMAT, "%s is '%.40s'; it must be a whole number, like %s", label,
                       text, hint);
    }
    if (value < o->min || value > o->max) return range_error(o, label, text, why);
    *(uint64_t *)((char *)c + o->offset) = (uint64_t)value;
    return OK;
}

static enum err set_number(struct config *c, const struct option *o, const char *label,
                           const char *text, struct why *why)
{
    char *end;
    double value = strtod(text, &end);
    if (end != text && o->max == 1 && strcmp(end, "%") == 0) {
        value /= 100;
        end++;
    }
    if (end == text || *end || value != value) {
        return why_set(why, ERR_FORMAT, "%s is '%.40s'; it must be a number", label, text);
    }
    if (value < o->min || value > o->max) return range_error(o, label, text, why);
    *(double *)((char *)c + o->offset) = value;
    return OK;
}

/* "1h30m", "90s", "1.5s", "500ms", "0"; -1: not of this form. */
static double parse_time_ms(const char *text)
{
    static const struct { const char *name; double ms; } units[] = {
        { "ms", 1 }, { "s", 1e3 }, { "m", 6e4 }, { "h", 3.6e6 },
    };
    double sum = 0;
    if (!*text || strlen(text) > 30 || strpbrk(text, "eExX")) return -1;
    while (*text) {
        char *end;
        if (!isdigit((unsigned char)*text)) return -1;
        double value = strtod(text, &end);
        size_t bytes = strspn(end, "hms"), i = 0;
        while (i < 4 && (strlen(units[i].name) != bytes || strncmp(units[i].name, end, bytes))) i++;
        if (i == 4 && !(value == 0 && !*end)) return -1;
        sum += i < 4 ? value * units[i].ms : 0;
        text = end + bytes;
    }
    return sum;
}

static enum err set_time(struct config *c, const struct option *o, const char *label,
                         const char *text, struct why *why)
{
    if (o->zero_word && strcmp(text, o->zero_word) == 0) text = "0";
    double ms = parse_time_ms(text);
    if (ms < o->min || ms > o->max) {
        return why_set(why, ERR_FORMAT, "%s is '%.40s'; it must be a time up to a year, like 1h, "
                       "90s or 1h30m", label, text);
    }
    *(uint64_t *)((char *)c + o->offset) = (uint64_t)ms;
    return OK;
}

static enum err set_switch(struct config *c, const struct option *o, const char *label,
                           const char *text, struct why *why)
{
    static const char *const words[] = { "false", "true", "no", "yes", "off", "on", "0", "1" };
    for (int i = 0; i < 8; i++) {
        if (strcasecmp(text, words[i]) != 0) continue;
        *(bool *)((char *)c + o->offset) = i & 1;
        return OK;
    }
    return why_set(why, ERR_FORMAT, "%s is '%.40s'; it must be true or false", label, text);
}

static enum err set_choice(struct config *c, const struct option *o, const char *label,
                           const char *text, struct why *why)
{
    size_t bytes = strlen(text);
    for (const char *at = o->choices; *at; at += *at == ' ') {
        size_t word = strcspn(at, " ");
        if (word == bytes && strncmp(at, text, bytes) == 0) {
            *(const char **)((char *)c + o->offset) = config_keep(text, bytes);
            return OK;
        }
        at += word;
    }
    return why_set(why, ERR_FORMAT, "%s is '%.40s'; it must be one of: %s", label, text,
                   o->choices);
}

static enum err set_text(struct config *c, const struct option *o, const char *label,
                         const char *text, struct why *why)
{
    size_t bytes = strlen(text);
    if (bytes > 4095) return why_set(why, ERR_LIMIT, "%s is longer than 4095 bytes", label);
    for (const char *at = text; *at; at++) {
        if (iscntrl((unsigned char)*at)) {
            return why_set(why, ERR_FORMAT, "%s holds a control character", label);
        }
    }
    *(const char **)((char *)c + o->offset) = config_keep(text, bytes);
    return OK;
}

enum err option_set(struct config *c, const struct option *o, const char *label, const char *text,
                    struct why *why)
{
    switch (o->kind) {
    case OPTION_TEXT: return set_text(c, o, label, text, why);
    case OPTION_CHOICE: return set_choice(c, o, label, text, why);
    case OPTION_COUNT:
    case OPTION_BYTES: return set_count(c, o, label, text, why);
    case OPTION_NUMBER: return set_number(c, o, label, text, why);
    case OPTION_TIME: return set_time(c, o, label, text, why);
    case OPTION_SWITCH: return set_switch(c, o, label, text, why);
    }
    CHECK(!"an option kind without a parser");
    return ERR_FORMAT;
}

/* As few digits as read back to the same number. */
static void print_shortest(double value, struct buf *out)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    buf_text(out, text);
}

void option_print(const struct config *c, const struct option *o, struct buf *out)
{
    const char *field = (const char *)c + o->offset;
    switch (o->kind) {
    case OPTION_TEXT:
    case OPTION_CHOICE: buf_text(out, *(const char *const *)field); break;
    case OPTION_COUNT:
    case OPTION_BYTES:
        if (*(const uint64_t *)field == 0 && o->zero_word && o->min > 0) {
            buf_text(out, o->zero_word);
        } else {
            buf_print(out, "%llu", (unsigned long long)*(const uint64_t *)field);
        }
        break;
    case OPTION_NUMBER: print_shortest(*(const double *)field, out); break;
    case OPTION_TIME:
        buf_print(out, "%llums", (unsigned long long)*(const uint64_t *)field);
        break;
    case OPTION_SWITCH: buf_text(out, *(const bool *)field ? "true" : "false"); break;
    }
}

bool option_is_default(const struct config *c, const struct option *o)
{
    struct config fresh;
    struct buf ours = { 0 }, initial = { 0 };
    config_defaults(&fresh);
    option_print(c, o, &ours);
    option_print(&fresh, o, &initial);
    bool same = ours.size == initial.size &&
                (!ours.size || memcmp(ours.data, initial.data, ours.size) == 0);
    buf_release(&ours);
    buf_release(&initial);
    return same;
}

void config_defaults(struct config *c)
{
    *c = (struct config){ 0 };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct why why;
        const struct option *o = &table[i];
        if (o->kind == OPTION_TEXT || o->kind == OPTION_CHOICE) {
            *(const char **)((char *)c + o->offset) = o->initial;
        } else {
            CHECK(option_set(c, o, o->name, o->initial, &why) == OK);
        }
    }
}
