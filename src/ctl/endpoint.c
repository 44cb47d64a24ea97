/* ctl/endpoint.c - the endpoint file and running services; see endpoint.h. */
#include "ctl/endpoint.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "common/config_table.h"
#include "ctl/ctl.h"
#include "ctl/http_client.h"

enum { ENDPOINT_BYTES_MAX = 65536, KEY_FILE_BYTES_MAX = 65536 };

/* For gateways on other hosts: where rank 0 listens for them. */
static const char *far_link(const struct config *c, char *out, size_t bytes)
{
    struct buf port = { 0 };
    struct why why;
    char path[256];
    const char *colon = strrchr(c->link_listen, ':');
    if (!colon) return c->link;
    snprintf(path, sizeof path, "%.200s.port", c->link);
    if (read_file(path, 16, &port, &why) != OK) return "";
    snprintf(out, bytes, "%.*s:%s", (int)(colon - c->link_listen), c->link_listen, port.data);
    buf_release(&port);
    return out;
}

static const char *secret_path(const struct config *c, char *out, size_t bytes)
{
    if (!*c->link_listen) return c->secret_file;
    size_t stem = strlen(c->endpoint_file);
    if (stem > 5 && strcmp(c->endpoint_file + stem - 5, ".json") == 0) stem -= 5;
    snprintf(out, bytes, "%.*s.secret", (int)stem, c->endpoint_file);
    return out;
}

enum err endpoint_open(const struct config *c, struct why *why)
{
    struct buf secret = { 0 };
    char path[PATH_MAX];
    if (!*c->endpoint_file || !*c->link_listen) return OK;
    enum err e = read_file(c->secret_file, 256, &secret, why);
    if (e == OK) {
        e = write_file_atomic(secret_path(c, path, sizeof path), secret.data, secret.size, why);
    }
    buf_release(&secret);
    return e;
}

void endpoint_close(const struct config *c)
{
    char path[PATH_MAX];
    if (!*c->endpoint_file) return;
    unlink(c->endpoint_file);
    if (*c->link_listen) unlink(secret_path(c, path, sizeof path));
}

enum err endpoint_write(const struct config *c, const char *url, const char *model,
                        const char *state, long long started, struct why *why)
{
    if (!*c->endpoint_file) return OK;
    /* A batch job's time limit, which the script that starts us knows. */
    const char *expires = getenv("RANKSERVE_EXPIRES");
    json_int_t seconds = expires ? strtoll(expires, NULL, 10) : 0;
    json_t *end = seconds > 0 ? json_integer(seconds) : json_null();
    char link[300], secret[PATH_MAX];
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:o, s:s, s:s, s:s}", "url", url,
                          "uds", c->uds, "model", model, "name", c->name, "job_id", c->job_id,
                          "state", state, "started", (json_int_t)started, "expires", end,
                          "api_key_file", c->api_key_file,
                          "link", far_link(c, link, sizeof link),
                          "secret_file", secret_path(c, secret, sizeof secret));
    char *text = o ? json_dumps(o, JSON_INDENT(1)) : NULL;
    json_decref(o);
    if (!text) return why_set(why, ERR_FORMAT, "the endpoint file: a name is not UTF-8");
    enum err e = write_file_atomic(c->endpoint_file, text, strlen(text), why);
    free(text);
    return e;
}

static const char *member(const json_t *o, const char *name)
{
    const char *text = json_string_value(json_object_get(o, name));
    return text && *text ? config_keep(text, strlen(text)) : NULL;
}

/* The first key of a key file, or the environment's key. */
static const char *find_key(const char *key_file)
{
    const char *key = getenv("RANKSERVE_API_KEY");
    if (!key_file) return key && *key ? key : NULL;
    struct buf text = { 0 };
    struct why why;
    if (read_file(key_file, KEY_FILE_BYTES_MAX, &text, &why) != OK) die("%s", why.text);
    const char *line = text.data ? text.data : "";
    while (*line == '#' || *line == '\r' || *line == '\n') { /* as the gateway reads it */
        line += strcspn(line, "\n");
        line += *line == '\n';
    }
    key = config_keep(line, strcspn(line, " \t\r\n"));
    buf_release(&text);
    return *key ? key : NULL;
}

void endpoint_find(struct endpoint *out, const char *url, const char *file, const char *key_file)
{
    *out = (struct endpoint){ .url = url };
    if (!file) file = getenv("RANKSERVE_ENDPOINT_FILE");
    if (!url && file && *file) {
        struct buf text = { 0 };
        struct why why;
        json_error_t error;
        if (read_file(file, ENDPOINT_BYTES_MAX, &text, &why) != OK) die("%s", why.text);
        json_t *o = json_loadb(text.data, text.size, 0, &error);
        if (!o) die("%s:%d: %s", file, error.line, error.text);
        out->url = member(o, "url");
        out->uds = member(o, "uds");
        out->model = member(o, "model");
        if (!key_file) key_file = member(o, "api_key_file");
        json_decref(o);
        buf_release(&text);
        if (!out->url && !out->uds) die("%s: the service has not started yet", file);
    }
    if (!out->url) out->url = out->uds ? "http://localhost" : "http://127.0.0.1:8000";
    else if (strncmp(out->url, "unix:", 5) == 0) {
        out->uds = out->url + 5;
        out->url = "http://localhost";
    }
    out->api_key = find_key(key_file);
}

const char *endpoint_model(const struct endpoint *at, struct why *why)
{
    struct http_request r = { .base = at->url, .uds = at->uds, .path = "/v1/models",
                              .api_key = at->api_key, .timeout_s = 5 };
    struct http_answer a;
    enum err e = http_ask(&r, &a, why);
    const char *model = NULL;
    if (e == OK && a.status == 200) {
        json_t *o = json_loadb(a.body.data, a.body.size, 0, NULL);
        model = member(json_array_get(json_object_get(o, "data"), 0), "id");
        json_decref(o);
        if (!model) why_set(why, ERR_FORMAT, "%.200s/v1/models names no model", at->url);
    } else if (e == OK) {
        why_set(why, ERR_DENIED, "%.200s answers %ld%s", at->url, a.status,
                a.status == 401 ? ": it wants an API key (--api-key-file)" : "");
    }
    buf_release(&a.body);
    return model;
}
