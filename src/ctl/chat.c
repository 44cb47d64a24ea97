/* ctl/chat.c - rankservectl chat: a conversation in the terminal, streamed as it is generated. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "ctl/ctl.h"
#include "ctl/endpoint.h"
#include "ctl/http_client.h"

enum { ANSWER_TEXT_MAX = 16 << 20 };

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

/* What is asked for beside the conversation. */
struct manner {
    const char *system;
    double temperature;
    long max_tokens;                  /* 0: as many as fit */
};

/* The answer as it comes: server-sent events, cut into lines. */
struct answer {
    struct buf line;
    struct buf text;                  /* of the assistant, so far */
    bool failed;
};

static void take_event(struct answer *a, const char *line)
{
    if (strncmp(line, "data:", 5) != 0) return;
    json_t *event = json_loads(line + 5, JSON_ALLOW_NUL, NULL);
    json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    json_t *content = json_object_get(json_object_get(choice, "delta"), "content");
    const char *problem = json_string_value(
        json_object_get(json_object_get(event, "error"), "message"));
    if (json_is_string(content)) {
        fwrite(json_string_value(content), 1, json_string_length(content), stdout);
        fflush(stdout);
        buf_add(&a->text, json_string_value(content), json_string_length(content));
    }
    if (problem) {
        fprintf(stderr, "\n[%s]", problem);
        a->failed = true;
    }
    json_decref(event);
}

static bool on_data(void *context, const char *data, size_t bytes)
{
    struct answer *a = context;
    for (size_t i = 0; i < bytes; i++) {
        if (data[i] != '\n') {
            if (!buf_char(&a->line, data[i])) return false;
            continue;
        }
        if (a->line.size) take_event(a, a->line.data);
        buf_clear(&a->line);
    }
    return !interrupted;
}

static void print_refusal(const struct http_answer *h)
{
    json_t *o = json_loadb(h->body.data, h->body.size, JSON_ALLOW_NUL, NULL);
    const char *text = json_string_value(json_object_get(json_object_get(o, "error"), "message"));
    fprintf(stderr, "[%ld: %s]\n", h->status, text ? text : "refused");
    json_decref(o);
}

/* Sends the conversation; appends the answer to it, or takes the question back. */
static bool say(const struct endpoint *at, json_t *messages, const struct manner *manner)
{
    struct answer a = { .line.limit = 1 << 20, .text.limit = ANSWER_TEXT_MAX };
    json_t *request = json_pack("{s:s, s:O, s:b}", "model", at->model, "messages", messages,
                                "stream", 1);
    json_object_set_new(request, "temperature", json_real(manner->temperature));
    if (manner->max_tokens) {
        json_object_set_new(request, "max_tokens", json_integer(manner->max_tokens));
    }
    char *body = json_dumps(request, JSON_COMPACT);
    json_decref(request);
    struct http_request r = { .base = at->url, .uds = at->uds, .path = "/v1/chat/completions",
                              .api_key = at->api_key, .body = body, .on_data = on_data,
                              .context = &a, .stop = &interrupted };
    struct http_answer h;
    struct why why;
    enum err e = http_ask(&r, &h, &why);
    free(body);
    bool ok = (e == OK || e == ERR_AGAIN) && h.status == 200 && !a.failed;
    putchar('\n');
    if (e != OK && e != ERR_AGAIN) fprintf(stderr, "[%s]\n", why.text);
    else if (e == OK && h.status != 200) print_refusal(&h);
    if (ok && a.text.size) {
        json_array_append_new(messages, json_pack("{s:s, s:o}", "role", "assistant", "content",
                                                  json_stringn_nocheck(a.text.data, a.text.size)));
    } else {
        json_array_remove(messages, json_array_size(messages) - 1);
    }
    buf_release(&a.line);
    buf_release(&a.text);
    buf_release(&h.body);
    return ok;
}

static void start(json_t *messages, const char *system)
{
    json_array_clear(messages);
    if (!system) return;
    json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "system", "content", system));
}

/* One line from the person; false at the end. */
static bool read_line(bool person, char **line, size_t *room)
{
    if (person) fputs("> ", stdout);
    fflush(stdout);
    interrupted = 0;
    ssize_t got = getline(line, room, stdin);
    if (got < 0) return false;
    while (got && ((*line)[got - 1] == '\n' || (*line)[got - 1] == '\r')) (*line)[--got] = '\0';
    return true;
}

static int converse(const struct endpoint *at, const struct manner *manner)
{
    bool person = isatty(STDIN_FILENO), ok = true;
    char *line = NULL;
    size_t room = 0;
    json_t *messages = json_array();
    start(messages, manner->system);
    while (read_line(person, &line, &room)) {
        if (!*line) continue;
        if (strcmp(line, "/exit") == 0 || strcmp(line, "/quit") == 0) break;
        if (strcmp(line, "/clear") == 0) {
            start(messages, manner->system);
            continue;
        }
        json_t *question = json_string(line);
        if (!question) {
            fprintf(stderr, "[that is not UTF-8]\n");
            continue;
        }
        json_array_append_new(messages,
                              json_pack("{s:s, s:o}", "role", "user", "content", question));
        ok = say(at, messages, manner);
    }
    if (person) putchar('\n');
    free(line);
    json_decref(messages);
    return ok ? 0 : 1;
}

static double number(const char *text, const char *flag, double low, double high)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= low && value <= high)) {
        die("chat: --%s is '%.40s'; it must be a number from %g to %g", flag, text, low, high);
    }
    return value;
}

int ctl_chat(int argc, char **argv)
{
    const char *url = NULL, *file = NULL, *key_file = NULL, *model = NULL;
    const char *max_tokens = "0", *temperature = "0.2";
    struct manner manner = { 0 };
    const struct flag flags[] = {
        { "url", &url, NULL, "URL", "the service [http://127.0.0.1:8000]; unix:PATH for a socket" },
        { "endpoint-file", &file, NULL, "FILE", "where `up` wrote how it is reached" },
        { "api-key-file", &key_file, NULL, "FILE", "its first key is sent; or RANKSERVE_API_KEY" },
        { "model", &model, NULL, "NAME", "which model; default: the first that is served" },
        { "system", &manner.system, NULL, "TEXT", "the system message" },
        { "temperature", &temperature, NULL, "X", "0: always the likeliest token [0.2]" },
        { "max-tokens", &max_tokens, NULL, "N", "of each answer" },
        { NULL },
    };
    if (flags_read(flags, "chat [options]    (/clear forgets, /exit or Ctrl-D ends)", argc, argv)) {
        die("chat: unexpected word '%.60s'", argv[1]);
    }
    manner.max_tokens = (long)number(max_tokens, "max-tokens", 0, 1e6);
    manner.temperature = number(temperature, "temperature", 0, 2);
    struct endpoint at;
    struct why why;
    endpoint_find(&at, url, file, key_file);
    if (model) at.model = model;
    if (!at.model) at.model = endpoint_model(&at, &why);
    if (!at.model) die("%s", why.text);
    sigaction(SIGINT, &(struct sigaction){ .sa_handler = on_interrupt }, NULL);
    if (isatty(STDIN_FILENO)) fprintf(stderr, "%s; /exit or Ctrl-D ends\n", at.model);
    return converse(&at, &manner);
}
