/* gateway/routes.c - see routes.h. */
#include "gateway/routes.h"

#include <string.h>

#include "common/cache_policy.h"
#include "common/clock.h"
#include "common/version.h"
#include "gateway/auth.h"
#include "gateway/link_client.h"
#include "gateway/metrics.h"
#include "gateway/page.h"

static void limits(struct gateway *gw, uint32_t *context, uint32_t *vocab)
{
    *context = gw->context;
    *vocab = tokenizer_vocab(gw->tokenizer);
    pthread_mutex_lock(&gw->lock);
    link_client_job(gw->link, context, vocab);
    pthread_mutex_unlock(&gw->lock);
}

static void run_page(struct gateway *gw, const char *path, const char *body, size_t bytes,
                     struct answer *out)
{
    (void)gw, (void)path, (void)body, (void)bytes;
    out->type = "text/html; charset=utf-8";
    buf_text(&out->body, page_html);
}

static void run_health(struct gateway *gw, const char *path, const char *body, size_t bytes,
                       struct answer *out)
{
    (void)path, (void)body, (void)bytes;
    pthread_mutex_lock(&gw->lock);
    enum job_state state = link_client_state(gw->link);
    bool draining = gw->draining;
    pthread_mutex_unlock(&gw->lock);
    if (state == JOB_LIVE && !draining) {
        buf_text(&out->body, "{\"status\":\"live\"}");
        return;
    }
    bool leaving = draining || state == JOB_DRAINING;
    api_fail(&out->error, 503, NULL, "the service is %s", leaving ? "shutting down" : "starting");
    out->error.retry_after_s = 1;
}

static void run_ping(struct gateway *gw, const char *path, const char *body, size_t bytes,
                     struct answer *out)
{
    run_health(gw, path, body, bytes, out);
}

static void run_version(struct gateway *gw, const char *path, const char *body, size_t bytes,
                        struct answer *out)
{
    (void)gw, (void)path, (void)body, (void)bytes;
    buf_text(&out->body, "{\"version\":\"" RANKSERVE_VERSION "\"}");
}

static void run_metrics(struct gateway *gw, const char *path, const char *body, size_t bytes,
                        struct answer *out)
{
    (void)path, (void)body, (void)bytes;
    out->type = "text/plain; version=0.0.4; charset=utf-8";
    struct prefix_store_stats store;
    prefix_store_stats(gw->store, &store);
    struct shared_view_stats view;
    if (gw->view) shared_view_stats(gw->view, &view);
    pthread_mutex_lock(&gw->lock);
    if (*gw->config.redis) {
        metrics_write_view(gw->metrics, gw->view ? &view : NULL, gw->model_name, &out->body);
    }
    metrics_write(gw->metrics, gw->model_name, clock_now_ns(), &out->body);
    metrics_write_store(&store, gw->model_name, &out->body);
    pthread_mutex_unlock(&gw->lock);
}

static void write_model(struct gateway *gw, struct buf *out)
{
    uint32_t context, vocab;
    limits(gw, &context, &vocab);
    buf_text(out, "{\"id\":");
    write_string(out, gw->model_name, strlen(gw->model_name));
    buf_print(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"rankserve\",\"root\":",
              (long long)gw->started);
    write_string(out, gw->model_name, strlen(gw->model_name));
    buf_print(out, ",\"parent\":null,\"max_model_len\":%u}", context);
}

static void run_models(struct gateway *gw, const char *path, const char *body, size_t bytes,
                       struct answer *out)
{
    (void)path, (void)body, (void)bytes;
    buf_text(&out->body, "{\"object\":\"list\",\"data\":[");
    write_model(gw, &out->body);
    buf_text(&out->body, "]}");
}

static void run_model(struct gateway *gw, const char *path, const char *body, size_t bytes,
                      struct answer *out)
{
    (void)body, (void)bytes;
    const char *name = path + strlen("/v1/models/");
    if (strcmp(name, gw->model_name) == 0) {
        write_model(gw, &out->body);
        return;
    }
    api_fail(&out->error, 404, "model", "The model `%.200s` does not exist.", name);
    out->error.code = "model_not_found";
}

/* Without keys everybody may ask for tokens, but only this host may change how it works. */
static bool may_change(const struct gateway *gw)
{
    const char *listen = gw->config.listen;
    return auth_asks(gw->auth) || strncmp(listen, "127.", 4) == 0
        || strncmp(listen, "[::1]", 5) == 0 || strncmp(listen, "localhost:", 10) == 0;
}

static void run_policy(struct gateway *gw, const char *path, const char *body, size_t bytes,
                       struct answer *out)
{
    (void)path;
    struct cache_policy p;
    char labels[4096 + 160];
    if (!may_change(gw)) {
        api_fail(&out->error, 403, NULL, "a policy is taken only by a service with an API key, or "
                 "one that listens on a loopback address");
        return;
    }
    snprintf(labels, sizeof labels, "%s,model=%s", gw->config.labels, gw->model_name);
    if (!api_parse_policy(labels, body, bytes, &p, &out->error)) return;
    pthread_mutex_lock(&gw->lock);
    uint32_t told = link_client_policy(gw->link, &p);
    pthread_mutex_unlock(&gw->lock);
    if (told) buf_print(&out->body, "{\"jobs\":%u}", told);
    else api_fail(&out->error, 503, NULL, "the service is not connected to a job that listens");
}

static void write_texts(struct gateway *gw, const struct token_list *ids, struct buf *out)
{
    buf_text(out, ",\"token_strs\":[");
    for (size_t i = 0; i < ids->count; i++) {
        size_t bytes = 0;
        const char *text = tokenizer_piece(gw->tokenizer, ids->ids[i], true, &bytes);
        if (i) buf_char(out, ',');
        write_string(out, text, bytes);
    }
    buf_char(out, ']');
}

static void run_tokenize(struct gateway *gw, const char *path, const char *body, size_t bytes,
                         struct answer *out)
{
    (void)path;
    uint32_t context, vocab;
    limits(gw, &context, &vocab);
    struct api_request r;
    size_t count_max = (size_t)SEQ_TOKENS_MAX * 4;
    if (api_parse(gw, API_TOKENIZE, body, bytes, count_max, vocab, &r, &out->error)) {
        const struct token_list *ids = &r.prompts[0].ids;
        buf_print(&out->body, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":", ids->count,
                  context);
        write_ids(&out->body, ids->ids, ids->count);
        if (r.o.return_token_strs) write_texts(gw, ids, &out->body);
        else buf_text(&out->body, ",\"token_strs\":null");
        buf_char(&out->body, '}');
    }
    api_request_release(&r);
}

static void run_detokenize(struct gateway *gw, const char *path, const char *body, size_t bytes,
                           struct answer *out)
{
    (void)path;
    uint32_t context, vocab;
    limits(gw, &context, &vocab);
    struct token_list ids = { 0 };
    struct buf text = { 0 };
    if (api_parse_ids(gw, body, bytes, vocab, &ids, &out->error)) {
        tokenizer_decode(gw->tokenizer, ids.ids, ids.count, true, &text);
        buf_text(&out->body, "{\"prompt\":");
        write_string(&out->body, text.data ? text.data : "", text.size);
        buf_char(&out->body, '}');
    }
    buf_release(&text);
    token_list_release(&ids);
}

static const struct route routes[] = {
    { "/v1/chat/completions", "POST", ROUTE_CHAT, false, NULL },
    { "/v1/completions", "POST", ROUTE_COMPLETION, false, NULL },
    { "/v1/models", "GET", ROUTE_SMALL, false, run_models },
    { "/v1/models/*", "GET", ROUTE_SMALL, false, run_model },
    { "/tokenize", "POST", ROUTE_SMALL, false, run_tokenize },
    { "/detokenize", "POST", ROUTE_SMALL, false, run_detokenize },
    { "/policy", "POST", ROUTE_SMALL, false, run_policy },
    { "/health", "GET", ROUTE_SMALL, true, run_health },
    { "/ping", "GET", ROUTE_SMALL, true, run_ping },
    { "/ping", "POST", ROUTE_SMALL, true, run_ping },
    { "/version", "GET", ROUTE_SMALL, true, run_version },
    { "/metrics", "GET", ROUTE_SMALL, true, run_metrics },
    { "/", "GET", ROUTE_SMALL, true, run_page },
};

static bool path_is(const struct route *r, const char *path)
{
    size_t bytes = strlen(r->path);
    if (r->path[bytes - 1] != '*') return strcmp(r->path, path) == 0;
    return strncmp(r->path, path, bytes - 1) == 0 && path[bytes - 1];
}

const char *route_methods(const char *path)
{
    bool get = false, post = false;
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        if (!path_is(&routes[i], path)) continue;
        if (strcmp(routes[i].method, "GET") == 0) get = true;
        else post = true;
    }
    return get && post ? "GET, HEAD, POST" : get ? "GET, HEAD" : post ? "POST" : "";
}

const struct route *route_find(const char *method, const char *path, struct api_error *e)
{
    bool known = false;
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const struct route *r = &routes[i];
        if (!path_is(r, path)) continue;
        known = true;
        bool head = strcmp(method, "HEAD") == 0 && strcmp(r->method, "GET") == 0;
        if (head || strcmp(method, r->method) == 0) return r;
    }
    if (known) api_fail(e, 405, NULL, "%.16s is not allowed for %.200s", method, path);
    else api_fail(e, 404, NULL, "there is nothing at %.200s", path);
    return NULL;
}
