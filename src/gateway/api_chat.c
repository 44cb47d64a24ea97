/* gateway/api_chat.c - see chat.h.
 *
 * Messages are brought into the form that templates expect (text parts joined, tool-call arguments
 * as objects), every string of the user's is guarded (guard.h), the template renders, and what it
 * made is tokenized with the template's own special tokens only.
 */
#include "gateway/api_chat.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gateway/api_json.h"
#include "gateway/guard.h"

struct chat {
    const struct gateway *gw;
    const struct api_options *o;
    struct api_error *e;
    char mark[GUARD_MARK_BYTES + 1];
};

/* -- messages ---------------------------------------------------------------------------------- */

static bool is_role(const json_t *role)
{
    if (!json_is_string(role)) return false;
    const char *text = json_string_value(role);
    size_t bytes = json_string_length(role);
    if (!bytes || bytes > 64) return false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '_' || c == '-';
        if (!fine) return false;
    }
    return true;
}

/* Text parts joined by newlines, as vLLM does for templates of text models. */
static json_t *join_parts(struct chat *c, const json_t *parts, size_t message)
{
    struct buf text = { 0 };
    json_t *part;
    size_t i;
    json_array_foreach((json_t *)parts, i, part) {
        const json_t *type = json_object_get(part, "type");
        const json_t *value = json_object_get(part, "text");
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0 ||
            !json_is_string(value)) {
            api_fail(c->e, 400, "messages", "messages[%zu].content[%zu]: only parts of type text "
                     "are supported by this model", message, i);
            buf_release(&text);
            return NULL;
        }
        if (i) buf_char(&text, '\n');
        buf_add(&text, json_string_value(value), json_string_length(value));
    }
    json_t *joined = json_stringn(text.data ? text.data : "", text.size);
    buf_release(&text);
    return joined;
}

/* Templates print arguments with tojson; clients send them as a string of JSON. */
static void parse_arguments(json_t *message)
{
    json_t *calls = json_object_get(message, "tool_calls"), *call;
    size_t i;
    json_array_foreach(calls, i, call) {
        json_t *function = json_object_get(call, "function");
        const json_t *arguments = json_object_get(function, "arguments");
        if (!json_is_string(arguments)) continue;
        const char *text = json_string_value(arguments);
        size_t bytes = json_string_length(arguments);
        if (json_too_deep(text, bytes)) continue;
        json_t *object = json_load(text, bytes, NULL, NULL);
        if (object) json_object_set_new(function, "arguments", object);
    }
}

static bool check_message(struct chat *c, json_t *message, size_t i)
{
    if (!json_is_object(message)) {
        return api_fail(c->e, 400, "messages", "messages[%zu] must be an object", i);
    }
    if (!is_role(json_object_get(message, "role"))) {
        return api_fail(c->e, 400, "messages", "messages[%zu].role must be a name such as user, "
                        "assistant or system", i);
    }
    json_t *content = json_object_get(message, "content");
    if (json_is_array(content)) {
        content = join_parts(c, content, i);
        if (!content) return false;
        json_object_set_new(message, "content", content);
    } else if ((!content || json_is_null(content)) && json_object_get(message, "tool_calls")) {
        json_object_set_new(message, "content", json_string("")); /* as vLLM: templates add it up */
    } else if (!json_is_string(content)) {
        return api_fail(c->e, 400, "messages", "messages[%zu].content must be a string or a list "
                        "of parts", i);
    }
    parse_arguments(message);
    return true;
}

/* A copy of the messages in the form that templates expect. */
static json_t *take_messages(struct chat *c, const json_t *root)
{
    const json_t *given = json_object_get(root, "messages");
    size_t count = json_array_size(given);
    if (!json_is_array(given) || !count) {
        api_fail(c->e, 400, "messages", "messages must be a list of at least one message");
        return NULL;
    }
    if (count > CHAT_MESSAGES_MAX) {
        api_fail(c->e, 400, "messages", "at most %d messages, got %zu", CHAT_MESSAGES_MAX, count);
        return NULL;
    }
    json_t *copy = json_deep_copy(given), *message;
    size_t i;
    json_array_foreach(copy, i, message) {
        if (check_message(c, message, i)) continue;
        json_decref(copy);
        return NULL;
    }
    return copy;
}

/* -- guarding ---------------------------------------------------------------------------------- */

static bool holds(const json_t *v, const char *mark)
{
    if (json_is_string(v)) {
        return memmem(json_string_value(v), json_string_length(v), mark, GUARD_MARK_BYTES);
    }
    const char *key;
    json_t *item;
    size_t i;
    json_array_foreach((json_t *)v, i, item) {
        if (holds(item, mark)) return true;
    }
    json_object_foreach((json_t *)v, key, item) {
        if (strstr(key, mark) || holds(item, mark)) return true;
    }
    return false;
}

static json_t *guarded(const struct chat *c, const json_t *v)
{
    struct buf text = { 0 };
    json_t *out, *item;
    const char *key;
    size_t i;
    switch (json_typeof(v)) {
    case JSON_STRING:
        guard_text(c->gw->guard, c->mark, json_string_value(v), json_string_length(v), &text);
        out = json_stringn(text.data ? text.data : "", text.size);
        break;
    case JSON_ARRAY:
        out = json_array();
        json_array_foreach((json_t *)v, i, item) json_array_append_new(out, guarded(c, item));
        break;
    case JSON_OBJECT:
        out = json_object();
        json_object_foreach((json_t *)v, key, item) {
            buf_clear(&text);
            guard_text(c->gw->guard, c->mark, key, strlen(key), &text);
            json_object_set_new(out, text.data ? text.data : "", guarded(c, item));
        }
        break;
    default:
        out = json_incref((json_t *)v);
    }
    buf_release(&text);
    return out;
}

/* -- rendering --------------------------------------------------------------------------------- */

static void set_piece(json_t *variables, const char *name, const struct tokenizer *t, int32_t id)
{
    size_t bytes = 0;
    const char *text = id >= 0 ? tokenizer_piece(t, id, true, &bytes) : NULL;
    if (text) json_object_set_new(variables, name, json_stringn(text, bytes));
}

static bool choose_mark(struct chat *c, const json_t *user)
{
    for (unsigned i = 0; i < GUARD_MARKS; i++) {
        guard_mark(i, c->mark);
        if (!holds(user, c->mark)) return true;
    }
    return api_fail(c->e, 400, "messages", "the messages use every Unicode noncharacter from "
                    "U+FDD0 to U+FDEF");
}

/* The user's part of the variables; takes `messages` over. */
static json_t *user_variables(struct chat *c, const json_t *root, json_t *messages)
{
    json_t *user = json_object();
    json_t *kwargs = json_object_get(root, "chat_template_kwargs");
    if (json_is_object(kwargs)) json_object_update(user, kwargs);
    json_object_set_new(user, "messages", messages);
    static const char *const names[] = { "tools", "documents" };
    for (int i = 0; i < 2; i++) {
        json_t *v = json_object_get(root, names[i]);
        bool list = json_is_array(v) && json_array_size(v);
        json_object_set(user, names[i], list ? v : json_null());
        if (!v || list || json_is_null(v) || json_is_array(v)) continue;
        api_fail(c->e, 400, names[i], "%s must be a list", names[i]);
        json_decref(user);
        return NULL;
    }
    if (kwargs && !json_is_object(kwargs) && !json_is_null(kwargs)) {
        api_fail(c->e, 400, "chat_template_kwargs", "chat_template_kwargs must be an object");
        json_decref(user);
        return NULL;
    }
    return user;
}

/* Where the last occurrence ends, 0 when there is none; linear, whatever the texts (KMP). */
static size_t last_end(const struct buf *text, const char *want, size_t bytes)
{
    size_t *back = mem_array(bytes + 1, sizeof *back), end = 0;
    for (size_t i = 1, k = 0; i < bytes; i++) {
        while (k && want[i] != want[k]) k = back[k];
        if (want[i] == want[k]) k++;
        back[i + 1] = k;
    }
    for (size_t i = 0, k = 0; i < text->size; i++) {
        while (k && (k == bytes || text->data[i] != want[k])) k = back[k];
        if (text->data[i] == want[k]) k++;
        if (k == bytes) end = i + 1;
    }
    free(back);
    return end;
}

/* continue_final_message: what the template put after the last message's text goes. */
static bool cut_after_final(struct chat *c, const json_t *variables, struct buf *text)
{
    const json_t *messages = json_object_get(variables, "messages");
    const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    const json_t *content = json_object_get(last, "content");
    const char *want = json_is_string(content) ? json_string_value(content) : "";
    size_t bytes = json_is_string(content) ? json_string_length(content) : 0;
    size_t end = bytes ? last_end(text, want, bytes) : 0;
    if (!end) {                       /* many templates trim */
        while (bytes && strchr(" \t\r\n", want[bytes - 1])) bytes--;
        while (bytes && strchr(" \t\r\n", *want)) want++, bytes--;
        end = bytes ? last_end(text, want, bytes) : 0;
    }
    if (end) text->size = end;
    return end || api_fail(c->e, 400, "continue_final_message", "the template does not show the "
                           "final message, so it cannot be continued");
}

static bool render(struct chat *c, const json_t *user, struct buf *text)
{
    if (!choose_mark(c, user)) return false;
    json_t *variables = guarded(c, user);
    const struct tokenizer *t = c->gw->tokenizer;
    json_object_set_new(variables, "add_generation_prompt",
                        json_boolean(c->o->add_generation_prompt));
    set_piece(variables, "bos_token", t, tokenizer_bos(t));
    set_piece(variables, "eos_token", t, tokenizer_eos(t));
    struct why why = { "" };
    enum err e = template_render(c->gw->chat, variables, time(NULL), text, &why);
    bool ok = e == OK;
    if (e == ERR_DENIED) api_fail(c->e, 400, "messages", "%s", why.text);
    else if (!ok) api_fail(c->e, 400, "messages", "the chat template failed: %s", why.text);
    if (ok && c->o->continue_final_message) ok = cut_after_final(c, variables, text);
    json_decref(variables);
    return ok;
}

enum err chat_encode(const struct gateway *gw, const json_t *root, const struct api_options *o,
                     size_t count_max, struct token_list *ids, struct api_error *e)
{
    struct chat c = { .gw = gw, .o = o, .e = e };
    if (!gw->chat) {
        api_fail(e, 400, "messages", "this model has no chat template: use /v1/completions, or "
                 "start with --chat-template");
        return ERR_UNSUPPORTED;
    }
    json_t *messages = take_messages(&c, root);
    json_t *user = messages ? user_variables(&c, root, messages) : NULL;
    if (!user) return ERR_FORMAT;
    struct buf text = { 0 };
    enum err result = ERR_FORMAT;
    if (render(&c, user, &text)) {
        result = text.size ? guard_encode(gw->guard, c.mark, text.data, text.size, count_max, ids)
                           : OK;
        if (result != OK && result != ERR_LIMIT) {
            api_fail(e, 400, "messages", "the prompt cannot be tokenized: %s", err_text(result));
        }
    }
    buf_release(&text);
    json_decref(user);
    return result;
}
