/* ctl/status.c - rankservectl status: a running service on one page. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"
#include "ctl/endpoint.h"
#include "ctl/http_client.h"

/* What is shown of /metrics: all series of a name, in this order. */
static const struct {
    const char *metric, *label;
} shown[] = {
    { "llm_d_workers", "workers" },
    { "llm_d_role_switches_total", "role switches" },
    { "llm_d_requests_total", "requests" },
    { "llm_d_queue_depth", "waiting" },
    { "llm_d_prefill_queue_depth", "waiting for prefill" },
    { "llm_d_decode_active_sequences", "generating" },
    { "llm_d_tokens_per_second", "tokens a second" },
    { "llm_d_token_latency_p95", "token latency p95, s" },
    { "llm_d_cache_hit_ratio", "cache hit ratio" },
    { "llm_d_prefix_reuse_ratio", "prefix reuse ratio" },
    { "llm_d_cache_memory_usage", "cache memory" },
    { "llm_d_scheduler_decisions_total", "placements" },
};

/* The quote that ends a label's value, which begins at `at`; NULL when there is none. */
static const char *value_end(const char *at, const char *end)
{
    while (at < end && *at != '"') at += *at == '\\' ? 2 : 1;
    return at < end ? at : NULL;
}

/* The labels without the model's name, which the page says once. */
static void print_labels(const char *at, const char *end)
{
    static const char model[] = "model_name=\"";
    while (at < end) {
        const char *open = memchr(at, '"', (size_t)(end - at));
        const char *close = open ? value_end(open + 1, end) : NULL;
        if (!close) return;
        if (strncmp(at, model, sizeof model - 1) != 0) {
            printf(" %.*s", (int)(close + 1 - at), at);
        }
        at = close + 1 + (close[1] == ',');
    }
}

/* "name{labels} value": prints it under its label when `name` is the one. */
static void print_series(const char *line, size_t bytes, const char *metric, const char *label)
{
    size_t name = strlen(metric);
    if (bytes <= name || strncmp(line, metric, name) != 0) return;
    const char *labels = line + name, *end = line + bytes;
    if (*labels != '{' && *labels != ' ') return;
    const char *value = end;
    while (value > labels && value[-1] != ' ') value--;
    printf("  %-22s %.*s", label, (int)(end - value), value);
    if (*labels == '{' && value - labels > 3) print_labels(labels + 1, value - 2);
    putchar('\n');
}

static void print_metrics(const char *text)
{
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        for (const char *line = text; *line;) {
            size_t bytes = strcspn(line, "\n");
            print_series(line, bytes, shown[i].metric, shown[i].label);
            line += bytes + (line[bytes] == '\n');
        }
    }
}

static long ask(const struct endpoint *at, const char *path, struct http_answer *a)
{
    struct http_request r = { .base = at->url, .uds = at->uds, .path = path,
                              .api_key = at->api_key, .timeout_s = 5 };
    struct why why;
    if (http_ask(&r, a, &why) != OK) die("%s", why.text);
    return a->status;
}

int ctl_status(int argc, char **argv)
{
    const char *url = NULL, *file = NULL, *key_file = NULL;
    const struct flag flags[] = {
        { "url", &url, NULL, "URL", "the service [http://127.0.0.1:8000]; unix:PATH for a socket" },
        { "endpoint-file", &file, NULL, "FILE", "where `up` wrote how it is reached" },
        { "api-key-file", &key_file, NULL, "FILE", "its first key is sent; or RANKSERVE_API_KEY" },
        { NULL },
    };
    if (flags_read(flags, "status [options]", argc, argv)) {
        die("status: unexpected word '%.60s'", argv[1]);
    }
    struct endpoint at;
    struct http_answer health, metrics;
    struct why why;
    endpoint_find(&at, url, file, key_file);
    long status = ask(&at, "/health", &health);
    const char *model = endpoint_model(&at, &why);
    printf("%s%s%s\n", at.uds ? "unix:" : at.url, at.uds ? at.uds : "",
           status == 200 ? " can serve" : " cannot serve now");
    printf("  %-22s %s\n", "model", model ? model : why.text);
    if (status != 200 && health.body.size) {
        printf("  %-22s %.*s\n", "health", (int)strcspn(health.body.data, "\n"), health.body.data);
    }
    if (ask(&at, "/metrics", &metrics) == 200) print_metrics(metrics.body.data);
    buf_release(&health.body);
    buf_release(&metrics.body);
    return status == 200 ? 0 : 1;
}
