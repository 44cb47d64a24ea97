/* gateway/api_parse.c - requests: JSON to struct api_request; see api.h.
 *
 * Types are strict ("temperature": "hot" is refused), unknown fields are ignored, as OpenAI's
 * clients send more every year.  Depth is checked before jansson sees the text.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/api.h"
#include "gateway/api_chat.h"
#include "gateway/api_json.h"
#include "gateway/prefix_store.h"

struct parse {
    const struct gateway *gw;
    json_t *root;
    struct api_request *r;
    struct api_error *e;
    size_t count_max;
    uint32_t vocab;
    const struct json_ids *ids;
};

void api_start(void)
{
    json_object_seed(0);
}

bool api_fail(struct api_error *e, int status, const char *param, const char *fmt, ...)
{
    *e = (struct api_error){ .status = status };
    if (param) snprintf(e->param, sizeof e->param, "%s", param);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
    return false;
}

/* -- options: a table of fields ---------------------------------------------------------------- */

enum field_kind { FIELD_NUMBER, FIELD_ABOVE, FIELD_INTEGER, FIELD_SWITCH }; /* ABOVE: > min */

struct field {
    const char *name;
    enum field_kind kind;
    size_t offset;
    double min, max;
};

#define AT(member) offsetof(struct api_options, member)
static const struct field fields[] = {
    { "temperature", FIELD_NUMBER, AT(temperature), 0, 2 },
    { "top_p", FIELD_ABOVE, AT(top_p), 0, 1 },
    { "min_p", FIELD_NUMBER, AT(min_p), 0, 1 },
    { "repetition_penalty", FIELD_ABOVE, AT(repetition_penalty), 0, 100 },
    { "presence_penalty", FIELD_NUMBER, AT(presence_penalty), -2, 2 },
    { "frequency_penalty", FIELD_NUMBER, AT(frequency_penalty), -2, 2 },
    { "timeout", FIELD_NUMBER, AT(timeout_s), 0, 86400 },
    { "top_k", FIELD_INTEGER, AT(top_k), -1, INT32_MAX },
    { "n", FIELD_INTEGER, AT(n), 1, CHOICES_MAX },
    { "best_of", FIELD_INTEGER, AT(best_of), 1, CHOICES_MAX },
    { "priority", FIELD_INTEGER, AT(priority), INT32_MIN, INT32_MAX },
    { "max_tokens", FIELD_INTEGER, AT(max_tokens), 0, 9e18 },
    { "max_completion_tokens", FIELD_INTEGER, AT(max_completion_tokens), 0, 9e18 },
    { "min_tokens", FIELD_INTEGER, AT(min_tokens), 0, SEQ_TOKENS_MAX },
    { "stream", FIELD_SWITCH, AT(stream) },
    { "echo", FIELD_SWITCH, AT(echo) },
    { "ignore_eos", FIELD_SWITCH, AT(ignore_eos) },
    { "return_token_ids", FIELD_SWITCH, AT(return_token_ids) },
    { "skip_special_tokens", FIELD_SWITCH, AT(skip_special_tokens) },
    { "include_stop_str_in_output", FIELD_SWITCH, AT(include_stop) },
    { "add_generation_prompt", FIELD_SWITCH, AT(add_generation_prompt) },
    { "continue_final_message", FIELD_SWITCH, AT(continue_final_message) },
    { "add_special_tokens", FIELD_SWITCH, AT(add_special_tokens) },
    { "parse_special", FIELD_SWITCH, AT(parse_special) },
    { "return_token_strs", FIELD_SWITCH, AT(return_token_strs) },
};

static const char *type_name(const json_t *v)
{
    static const char *const names[] = { "an object", "an array", "a string", "an integer",
                                         "a number", "true", "false", "null" };
    return names[json_typeof(v)];
}

/* A member that is present and not null. */
static json_t *member(const json_t *object, const char *name)
{
    json_t *v = json_object_get(object, name);
    return v && !json_is_null(v) ? v : NULL;
}

/* 5 and 5.0 are integers, 5.5 and "5" are not. */
static bool integer_of(const json_t *v, int64_t *out)
{
    if (json_is_integer(v)) {
        *out = json_integer_value(v);
        return true;
    }
    double x = json_is_real(v) ? json_real_value(v) : NAN;
    if (!(fabs(x) <= 9007199254740992.0) || x != floor(x)) return false;
    *out = (int64_t)x;
    return true;
}

static bool get_integer(struct parse *p, const char *name, double min, double max, int64_t *out)
{
    const json_t *v = member(p->root, name);
    if (!v) return true;
    if (!integer_of(v, out)) {
        return api_fail(p->e, 400, name, "%s must be an integer, not %s", name, type_name(v));
    }
    if ((double)*out < min || (double)*out > max) {
        if (max >= 1e18) {
            return api_fail(p->e, 400, name, "%s must be at least %.0f, got %lld", name, min,
                            (long long)*out);
        }
        return api_fail(p->e, 400, name, "%s must be between %.0f and %.0f, got %lld", name, min,
                        max, (long long)*out);
    }
    return true;
}

static bool get_number(struct parse *p, const struct field *f, double *out)
{
    const json_t *v = member(p->root, f->name);
    if (!v) return true;
    if (!json_is_number(v)) {
        return api_fail(p->e, 400, f->name, "%s must be a number, not %s", f->name, type_name(v));
    }
    double x = json_number_value(v);
    bool low = f->kind == FIELD_ABOVE ? x > f->min : x >= f->min;
    if (!low || !(x <= f->max)) {
        return api_fail(p->e, 400, f->name, "%s must be %s %g and at most %g, got %g", f->name,
                        f->kind == FIELD_ABOVE ? "above" : "at least", f->min, f->max, x);
    }
    *out = x;
    return true;
}

static bool get_switch(struct parse *p, const json_t *object, const char *name, bool *out)
{
    const json_t *v = member(object, name);
    if (!v) return true;
    if (!json_is_boolean(v)) {
        return api_fail(p->e, 400, name, "%s must be true or false, not %s", name, type_name(v));
    }
    *out = json_is_true(v);
    return true;
}

static bool get_fields(struct parse *p)
{
    char *base = (char *)&p->r->o;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const struct field *f = &fields[i];
        void *at = base + f->offset;
        bool ok = f->kind == FIELD_INTEGER ? get_integer(p, f->name, f->min, f->max, at)
                : f->kind == FIELD_SWITCH  ? get_switch(p, p->root, f->name, at)
                                           : get_number(p, f, at);
        if (!ok) return false;
    }
    return true;
}

/* -- options that are more than a number ------------------------------------------------------- */

static bool get_stop(struct parse *p)
{
    const json_t *v = member(p->root, "stop");
    if (!v) return true;
    size_t count = json_is_array(v) ? json_array_size(v) : 1;
    if (count > STOP_STRINGS_MAX) {
        return api_fail(p->e, 400, "stop", "stop may hold at most %d strings, got %zu",
                        STOP_STRINGS_MAX, count);
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *s = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(s)) {
            return api_fail(p->e, 400, "stop", "stop must be a string or a list of strings");
        }
        if (!stop_strings_add(&p->r->stops, json_string_value(s), json_string_length(s))) {
            return api_fail(p->e, 400, "stop", "a stop string must have 1 to %d bytes, got %zu",
                            STOP_STRING_BYTES_MAX, json_string_length(s));
        }
    }
    return true;
}

static bool get_stop_ids(struct parse *p)
{
    const json_t *v = member(p->root, "stop_token_ids");
    if (!v) return true;
    int32_t ends[STOP_IDS_MAX];
    uint32_t room = STOP_IDS_MAX - tokenizer_end_ids(p->gw->tokenizer, ends, STOP_IDS_MAX);
    if (!json_is_array(v) || json_array_size(v) > room) {
        return api_fail(p->e, 400, "stop_token_ids",
                        "stop_token_ids must be a list of at most %u token ids", room);
    }
    const json_t *item;
    size_t i;
    json_array_foreach((json_t *)v, i, item) {
        int64_t id;
        if (!integer_of(item, &id) || id < 0 || id >= p->vocab) {
            return api_fail(p->e, 400, "stop_token_ids",
                            "stop_token_ids must hold ids from 0 to %u", p->vocab - 1);
        }
        p->r->stop_ids[p->r->stop_id_count++] = (int32_t)id;
    }
    return true;
}

static bool get_bias(struct parse *p)
{
    json_t *v = member(p->root, "logit_bias");
    if (!v) return true;
    if (!json_is_object(v)) {
        return api_fail(p->e, 400, "logit_bias", "logit_bias must be an object, not %s",
                        type_name(v));
    }
    if (json_object_size(v) > LOGIT_BIAS_MAX) {
        return api_fail(p->e, 400, "logit_bias", "logit_bias may hold at most %d entries, got %zu",
                        LOGIT_BIAS_MAX, json_object_size(v));
    }
    p->r->bias = mem_array(json_object_size(v), sizeof *p->r->bias);
    const char *key;
    json_t *value;
    json_object_foreach(v, key, value) {
        char *end;
        long id = strtol(key, &end, 10);
        if (!*key || *end || key[0] == '-' || id < 0 || id >= (long)p->vocab) {
            return api_fail(p->e, 400, "logit_bias",
                            "logit_bias keys must be token ids from 0 to %u, got %.32s",
                            p->vocab - 1, key);
        }
        double bias = json_is_number(value) ? json_number_value(value) : NAN;
        if (!(bias >= -100 && bias <= 100)) {
            return api_fail(p->e, 400, "logit_bias",
                            "logit_bias values must be numbers from -100 to 100 (key %.32s)", key);
        }
        p->r->bias[p->r->bias_count++] = (struct logit_bias){ (int32_t)id, (float)bias };
    }
    return true;
}

static bool get_stream_options(struct parse *p)
{
    const json_t *v = member(p->root, "stream_options");
    if (!v) return true;
    if (!json_is_object(v)) {
        return api_fail(p->e, 400, "stream_options", "stream_options must be an object, not %s",
                        type_name(v));
    }
    if (!p->r->o.stream) {
        return api_fail(p->e, 400, "stream_options", "stream_options needs stream: true");
    }
    return get_switch(p, v, "include_usage", &p->r->o.include_usage) &&
           get_switch(p, v, "continuous_usage_stats", &p->r->o.continuous_usage);
}

static bool get_logprobs(struct parse *p)
{
    struct api_options *o = &p->r->o;
    double most = (double)p->gw->config.max_logprobs;
    if (most > TOP_LOGPROBS_MAX) most = TOP_LOGPROBS_MAX;
    if (!get_integer(p, "prompt_logprobs", 0, most, &o->prompt_logprobs)) return false;
    if (o->prompt_logprobs >= 0 && o->stream) {
        return api_fail(p->e, 400, "prompt_logprobs", "prompt_logprobs cannot be streamed");
    }
    if (p->r->kind == API_COMPLETION) {
        if (!get_integer(p, "logprobs", 0, most, &o->top_logprobs)) return false;
        o->logprobs = o->top_logprobs >= 0;
        return true;
    }
    if (!get_switch(p, p->root, "logprobs", &o->logprobs)) return false;
    if (!get_integer(p, "top_logprobs", 0, most, &o->top_logprobs)) return false;
    if (o->top_logprobs > 0 && !o->logprobs) {
        return api_fail(p->e, 400, "top_logprobs", "top_logprobs needs logprobs: true");
    }
    if (o->top_logprobs < 0) o->top_logprobs = 0;
    return true;
}

static bool get_hash(struct parse *p, const char *name, uint64_t *out)
{
    const json_t *v = member(p->root, name);
    if (!v) return true;
    if (!json_is_string(v)) {
        return api_fail(p->e, 400, name, "%s must be a string, not %s", name, type_name(v));
    }
    if (!json_string_length(v)) return true;
    struct hash_secret none = { 0 };  /* whoever keys KV blocks adds the secret */
    struct hash128 h = hash_sip128(none, json_string_value(v), json_string_length(v));
    *out = h.lo ? h.lo : 1;
    return true;
}

static bool get_seed(struct parse *p)
{
    const json_t *v = member(p->root, "seed");
    p->r->o.has_seed = v != NULL;
    if (v && json_is_integer(v)) {
        p->r->o.seed = json_integer_value(v);
        return true;
    }
    return get_integer(p, "seed", -9e18, 9e18, &p->r->o.seed);
}

/* Fields that mean something we do not do must not be passed over in silence. */
static bool refuse_unsupported(struct parse *p)
{
    const json_t *format = member(p->root, "response_format");
    const json_t *type = json_object_get(format, "type");
    if (format && !json_is_string(type)) {
        return api_fail(p->e, 400, "response_format", "response_format must be an object with a "
                        "type");
    }
    if (format && strcmp(json_string_value(type), "text") != 0) {
        return api_fail(p->e, 400, "response_format", "response_format of type %.32s is not "
                        "supported yet", json_string_value(type));
    }
    static const char *const others[] = {
        "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
        "suffix", "prompt_embeds", "chat_template", "functions", "function_call", "bad_words",
        "allowed_token_ids", "truncate_prompt_tokens", "use_beam_search", "logits_processors",
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        const json_t *v = member(p->root, others[i]);
        bool unset = !v || json_is_false(v) || (json_is_string(v) && !json_string_length(v)) ||
                     (json_is_array(v) && !json_array_size(v));
        if (unset) continue;
        return api_fail(p->e, 400, others[i], "%s is not supported yet", others[i]);
    }
    const json_t *choice = member(p->root, "tool_choice");
    if (!choice) return true;
    const char *word = json_is_string(choice) ? json_string_value(choice) : "";
    if (strcmp(word, "none") == 0 || strcmp(word, "auto") == 0) return true;
    return api_fail(p->e, 400, "tool_choice", "tool_choice must be \"none\" or \"auto\"; forcing a "
                    "tool is not supported yet");
}

static bool check_together(struct parse *p)
{
    const struct api_options *o = &p->r->o;
    bool scoring = p->r->kind == API_COMPLETION && o->echo;
    if (o->max_tokens == 0 && !scoring) {
        return api_fail(p->e, 400, "max_tokens", "max_tokens must be at least 1, got 0");
    }
    if (o->max_completion_tokens == 0) {
        return api_fail(p->e, 400, "max_completion_tokens",
                        "max_completion_tokens must be at least 1, got 0");
    }
    if (o->best_of && o->best_of != o->n) {
        return api_fail(p->e, 400, "best_of", "best_of is not supported unless it equals n");
    }
    if (o->continue_final_message && o->add_generation_prompt &&
        member(p->root, "add_generation_prompt")) {
        return api_fail(p->e, 400, "continue_final_message", "continue_final_message and "
                        "add_generation_prompt cannot both be true");
    }
    return true;
}

static bool get_model(struct parse *p)
{
    const json_t *v = member(p->root, "model");
    if (!v) return true;
    if (!json_is_string(v)) {
        return api_fail(p->e, 400, "model", "model must be a string, not %s", type_name(v));
    }
    const char *name = p->gw->model_name;
    if (json_string_length(v) == strlen(name) && strcmp(json_string_value(v), name) == 0) {
        return true;
    }
    api_fail(p->e, 404, "model", "The model `%.200s` does not exist.", json_string_value(v));
    p->e->code = "model_not_found";
    return false;
}

/* -- prompts ----------------------------------------------------------------------------------- */

static bool is_list(const struct parse *p, const json_t *v)
{
    return json_is_array(v) || json_ids_at(p->ids, v);
}

static bool bad_id(struct parse *p, const char *name)
{
    return api_fail(p->e, 400, name, "token ids must be integers from 0 to %u", p->vocab - 1);
}

static bool ids_of(struct parse *p, const json_t *list, const char *name, struct token_list *ids)
{
    const struct token_list *read = json_ids_at(p->ids, list);
    for (size_t i = 0; read && i < read->count; i++)
        if ((uint32_t)read->ids[i] >= p->vocab) return bad_id(p, name);
    if (read) token_list_append(ids, read->ids, read->count);
    const json_t *item;
    size_t i;
    json_array_foreach((json_t *)list, i, item) {
        int64_t id;
        if (!integer_of(item, &id) || id < 0 || id >= p->vocab) return bad_id(p, name);
        token_list_add(ids, (int32_t)id);
    }
    return true;
}

static bool too_long(struct parse *p, const char *name)
{
    api_fail(p->e, 400, name, "This model's maximum context length is %zu tokens. However, the "
             "prompt has more than %zu tokens.", p->count_max / 4, p->count_max);
    p->e->code = "context_length_exceeded";
    return false;
}

static bool prompt_text(struct parse *p, const json_t *text, struct api_prompt *out)
{
    const struct tokenizer *t = p->gw->tokenizer;
    out->bytes = json_string_length(text);
    out->text = mem_text_n(json_string_value(text), out->bytes);
    if (p->r->o.add_special_tokens && tokenizer_add_bos(t)) {
        token_list_add(&out->ids, tokenizer_bos(t));
    }
    enum err e = p->r->o.parse_special
                     ? tokenizer_encode(t, out->text, out->bytes, true, p->count_max, &out->ids)
                     : prefix_store_encode(p->gw->store, out->text, out->bytes, p->count_max,
                                           &out->ids);
    if (e == ERR_LIMIT) return too_long(p, "prompt");
    return e == OK || api_fail(p->e, 400, "prompt", "the prompt cannot be tokenized: %s",
                               err_text(e));
}

static bool prompt_one(struct parse *p, const json_t *v, struct api_prompt *out)
{
    bool ok = is_list(p, v)     ? ids_of(p, v, "prompt", &out->ids)
            : json_is_string(v) ? prompt_text(p, v, out)
            : api_fail(p->e, 400, "prompt", "prompt must be a string, a list of strings, a list of "
                       "token ids or a list of such lists");
    if (!ok) return false;
    if (out->ids.count || p->r->kind == API_TOKENIZE) return true;
    return api_fail(p->e, 400, "prompt", "the prompt is empty: it has no tokens");
}

static bool get_prompts(struct parse *p)
{
    const json_t *v = member(p->root, "prompt");
    if (!v) return api_fail(p->e, 400, "prompt", "prompt is missing");
    bool many = json_is_array(v) && !json_is_integer(json_array_get(v, 0));
    size_t count = many ? json_array_size(v) : 1;
    if (!count) return api_fail(p->e, 400, "prompt", "prompt is an empty list");
    if (many && p->r->kind == API_TOKENIZE) {
        return api_fail(p->e, 400, "prompt", "prompt must be a string: one at a time");
    }
    if (count * (size_t)p->r->o.n > CHOICES_MAX) {
        return api_fail(p->e, 400, "prompt", "prompts times n may be at most %d, got %zu times "
                        "%lld", CHOICES_MAX, count, (long long)p->r->o.n);
    }
    p->r->prompts = mem_array(count, sizeof *p->r->prompts);
    p->r->prompt_count = (uint32_t)count;
    for (size_t i = 0; i < count; i++) {
        if (!prompt_one(p, many ? json_array_get(v, i) : v, &p->r->prompts[i])) return false;
    }
    return true;
}

static bool get_messages(struct parse *p)
{
    p->r->prompts = mem_array(1, sizeof *p->r->prompts);
    p->r->prompt_count = 1;
    enum err e = chat_encode(p->gw, p->root, &p->r->o, p->count_max, &p->r->prompts[0].ids, p->e);
    if (e == ERR_LIMIT) return too_long(p, "messages");
    if (e != OK) return false;
    if (p->r->prompts[0].ids.count) return true;
    return api_fail(p->e, 400, "messages", "the chat template made an empty prompt");
}

/* -- a body ------------------------------------------------------------------------------------ */

static json_t *load(const char *body, size_t bytes, struct json_ids *ids, struct api_error *e)
{
    if (!bytes) {
        api_fail(e, 400, NULL, "the request has no body: JSON is expected");
        return NULL;
    }
    if (json_too_deep(body, bytes)) {
        api_fail(e, 400, NULL, "the JSON is nested more than %d levels deep", JSON_DEPTH_MAX);
        return NULL;
    }
    json_error_t error;
    json_t *root = json_load(body, bytes, ids, &error);
    if (!root) {
        api_fail(e, 400, NULL, "invalid JSON at line %d column %d: %s", error.line, error.column,
                 error.text);
    } else if (!json_is_object(root)) {
        api_fail(e, 400, NULL, "the body must be a JSON object, not %s", type_name(root));
        json_decref(root);
        root = NULL;
    }
    return root;
}

static void defaults(struct api_request *r, enum api_kind kind)
{
    *r = (struct api_request){
        .kind = kind,
        .o = { .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n = 1, .max_tokens = -1,
               .max_completion_tokens = -1, .top_logprobs = -1, .prompt_logprobs = -1,
               .skip_special_tokens = true, .add_generation_prompt = true,
               .add_special_tokens = true },
    };
}

static bool parse_all(struct parse *p)
{
    struct api_options *o = &p->r->o;
    if (!get_model(p) || !get_fields(p) || !refuse_unsupported(p)) return false;
    if (!get_stop(p) || !get_stop_ids(p) || !get_bias(p) || !get_stream_options(p)) return false;
    if (p->r->kind != API_TOKENIZE && !get_logprobs(p)) return false;
    if (!get_hash(p, "cache_salt", &p->r->cache_salt) || !get_hash(p, "user", &p->r->user_hash) ||
        !get_seed(p) || !check_together(p)) {
        return false;
    }
    p->r->stops.include = o->include_stop;
    if (o->continue_final_message) o->add_generation_prompt = false;
    bool messages = p->r->kind == API_CHAT ||
                    (p->r->kind == API_TOKENIZE && member(p->root, "messages"));
    return messages ? get_messages(p) : get_prompts(p);
}

bool api_parse(const struct gateway *gw, enum api_kind kind, const char *body, size_t bytes,
               size_t count_max, uint32_t vocab, struct api_request *r, struct api_error *e)
{
    defaults(r, kind);
    struct json_ids ids = { 0 };
    json_t *root = load(body, bytes, &ids, e);
    struct parse p = { gw, root, r, e, count_max, vocab, &ids };
    bool ok = root && parse_all(&p);
    json_decref(root);
    token_list_release(&ids.list);
    return ok;
}

void api_request_release(struct api_request *r)
{
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        token_list_release(&r->prompts[i].ids);
        free(r->prompts[i].text);
        free(r->prompts[i].keys);
    }
    free(r->prompts);
    free(r->bias);
    stop_strings_release(&r->stops);
    *r = (struct api_request){ 0 };
}

bool api_parse_ids(const struct gateway *gw, const char *body, size_t bytes, uint32_t vocab,
                   struct token_list *ids, struct api_error *e)
{
    struct json_ids lifted = { 0 };
    json_t *root = load(body, bytes, &lifted, e);
    struct parse p = { .gw = gw, .root = root, .e = e, .vocab = vocab, .ids = &lifted };
    const json_t *tokens = member(root, "tokens");
    bool ok = root && get_model(&p);
    if (ok && !is_list(&p, tokens)) {
        ok = api_fail(e, 400, "tokens", "tokens must be a list of ids");
    }
    ok = ok && ids_of(&p, tokens, "tokens", ids);
    json_decref(root);
    token_list_release(&lifted.list);
    return ok;
}
