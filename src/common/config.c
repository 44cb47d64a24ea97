/* common/config.c - settings from arguments, environment and files; see config.h. */
#include "common/config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/config_table.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/service.h"
#include "common/suggest.h"
#include "common/version.h"

enum { CONFIG_FILE_BYTES_MAX = 1 << 20 };

/* What the command line asks for besides options. */
struct arguments {
    const char *file;                 /* -f       */
    const char *config;               /* --config */
    bool help, print, version;
    int words;
    const char *word;                 /* the last one */
};

static const char *program_name(enum program program)
{
    return program == PROGRAM_RANKSERVE ? "rankserve"
         : program == PROGRAM_GATEWAY   ? "rankserve-gateway"
                                        : "rankservectl";
}

static enum err unknown_option(const char *argument, enum program program, struct why *why)
{
    static const char *const extra[] = { "file", "config", "print-config", "version", "help" };
    char name[80], tail[128];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(argument, "="), argument);
    const char *bare = name + strspn(name, "-");
    struct suggest s = { .wrong = bare };
    size_t count;
    const struct option *o = option_table(&count);
    for (size_t i = 0; i < count; i++) {
        if (o[i].programs & program) suggest_offer(&s, o[i].name);
    }
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) suggest_offer(&s, extra[i]);
    return why_set(why, ERR_FORMAT, "unknown option %.80s%s", name,
                   suggest_text(&s, "--", tail, sizeof tail));
}

/* Finds the row of "--name", "--no-name" or "--name=value"; *value_out is NULL without a '='. */
static const struct option *find_argument(const char *argument, bool *no_out,
                                          const char **value_out)
{
    char name[80];
    size_t bytes = strcspn(argument, "=");
    *value_out = argument[bytes] ? argument + bytes + 1 : NULL;
    *no_out = false;
    if (bytes >= sizeof name) return NULL;
    snprintf(name, sizeof name, "%.*s", (int)bytes, argument);
    const struct option *o = option_find(name + 2);
    if (o) return o;
    if (strncmp(name, "--no-", 5) != 0) return NULL;
    *no_out = true;
    o = option_find(name + 5);
    return o && o->kind == OPTION_SWITCH ? o : NULL;
}

static bool is_option(const char *argument)
{
    return argument[0] == '-' && argument[1];
}

/* --file X and its like, which are not rows; *value_out is the rest, NULL when `name` is not it. */
static bool own_option(char **argv, int argc, int *i, const char *name, const char **value_out,
                       struct why *why, enum err *e)
{
    size_t bytes = strlen(name);
    if (strncmp(argv[*i], name, bytes) != 0) return false;
    if (argv[*i][bytes] == '=') {
        *value_out = argv[*i] + bytes + 1;
    } else if (argv[*i][bytes]) {
        return false;
    } else if (*i + 1 < argc) {
        *value_out = argv[++*i];
    } else {
        *e = why_set(why, ERR_FORMAT, "%s needs a file name", name);
    }
    return true;
}

static enum err take_option(struct config *c, enum program program, int argc, char **argv, int *i,
                            struct why *why)
{
    const char *argument = argv[*i], *value;
    char label[80];
    bool no;
    const struct option *o = argument[1] == '-' ? find_argument(argument, &no, &value) : NULL;
    if (!o) return unknown_option(argument, program, why);
    snprintf(label, sizeof label, "--%s", o->name);
    if (!(o->programs & program)) {
        return why_set(why, ERR_FORMAT, "%s is not an option of %s", label, program_name(program));
    }
    if (o->kind == OPTION_SWITCH) {
        if (no && value) return why_set(why, ERR_FORMAT, "--no-%s takes no value", o->name);
        return option_set(c, o, label, no ? "false" : value ? value : "true", why);
    }
    if (!value) {
        bool there = *i + 1 < argc && strncmp(argv[*i + 1], "--", 2) != 0;
        if (!there) return why_set(why, ERR_FORMAT, "%s needs a value", label);
        value = argv[++*i];
    }
    return option_set(c, o, label, value, why);
}

/* First walk (c is NULL): files and questions.  Second: options; words move to the front. */
static enum err walk_arguments(struct config *c, struct arguments *a, enum program program,
                               int argc, char **argv, struct why *why)
{
    enum err e = OK;
    struct config scratch;
    if (!c) config_defaults(&scratch);
    int words = 0;
    bool only_words = false;
    for (int i = 1; i < argc && e == OK; i++) {
        if (only_words || !is_option(argv[i])) {
            words++;
            a->word = argv[i];
            if (c) argv[words] = argv[i];
        } else if (strcmp(argv[i], "--") == 0) {
            only_words = true;
        } else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            a->help = true;
        } else if (!strcmp(argv[i], "--version")) {
            a->version = true;
        } else if (!strcmp(argv[i], "--print-config")) {
            a->print = true;
        } else if (!own_option(argv, argc, &i, "-f", &a->file, why, &e) &&
                   !own_option(argv, argc, &i, "--file", &a->file, why, &e) &&
                   !own_option(argv, argc, &i, "--config", &a->config, why, &e)) {
            e = take_option(c ? c : &scratch, program, argc, argv, &i, why);
        }
    }
    a->words = words;
    return e;
}

static enum err from_environment(struct config *c, enum program program, struct why *why)
{
    size_t count;
    const struct option *o = option_table(&count);
    for (size_t i = 0; i < count; i++) {
        char name[80];
        option_environment_name(&o[i], name, sizeof name);
        const char *value = getenv(name);
        if (!value || !(o[i].programs & program)) continue;
        enum err e = option_set(c, &o[i], name, value, why);
        if (e != OK) return e;
    }
    return OK;
}

void config_forget_environment(void)
{
    size_t count;
    const struct option *o = option_table(&count);
    for (size_t i = 0; i < count; i++) {
        char name[80];
        option_environment_name(&o[i], name, sizeof name);
        unsetenv(name);
    }
}

static char *trim(char *text)
{
    text += strspn(text, " \t\r\n");
    size_t bytes = strlen(text);
    while (bytes && strchr(" \t\r\n", text[bytes - 1])) text[--bytes] = '\0';
    return text;
}

/* One `name = value`; a value in double quotes keeps its outer spaces. */
static enum err config_line(struct config *c, char *line, const char *where, struct why *why)
{
    char *equals = strchr(line, '=');
    if (!equals) return why_set(why, ERR_FORMAT, "%s: not of the form name = value", where);
    *equals = '\0';
    char *name = trim(line), *value = trim(equals + 1);
    size_t bytes = strlen(value);
    if (bytes >= 2 && value[0] == '"' && value[bytes - 1] == '"') {
        value[bytes - 1] = '\0';
        value++;
    }
    const struct option *o = option_find(name);
    if (!o) {
        char tail[128];
        struct suggest s = { .wrong = name };
        size_t count;
        const struct option *row = option_table(&count);
        for (size_t i = 0; i < count; i++) suggest_offer(&s, row[i].name);
        return why_set(why, ERR_FORMAT, "%s: unknown setting '%.60s'%s", where, name,
                       suggest_text(&s, "", tail, sizeof tail));
    }
    char label[256];
    snprintf(label, sizeof label, "%.160s: %s", where, o->name);
    return option_set(c, o, label, value, why);
}

static enum err from_config_file(struct config *c, const char *path, struct why *why)
{
    FILE *in = fopen(path, "re");
    if (!in) return why_set(why, ERR_IO, "%.200s: %s", path, strerror(errno));
    char *line = NULL;
    size_t room = 0, total = 0;
    ssize_t got;
    unsigned number = 0;
    enum err e = OK;
    while (e == OK && (got = getline(&line, &room, in)) >= 0) {
        char where[256];
        snprintf(where, sizeof where, "%.200s:%u", path, ++number);
        total += (size_t)got;
        bool whole = strlen(line) == (size_t)got;
        char *text = trim(line);
        if (total > CONFIG_FILE_BYTES_MAX) e = why_set(why, ERR_LIMIT, "%s: file too long", where);
        else if (!whole) e = why_set(why, ERR_FORMAT, "%s: holds a NUL byte", where);
        else if (*text && *text != '#') e = config_line(c, text, where, why);
    }
    free(line);
    fclose(in);
    return e;
}

static enum err check_listen(const char *listen, struct why *why)
{
    const char *colon = strrchr(listen, ':');
    char *end;
    long port = colon && colon[1] ? strtol(colon + 1, &end, 10) : -1;
    bool bracketed = colon && listen[0] == '[' && colon > listen && colon[-1] == ']';
    bool bare_v6 = colon && !bracketed && strchr(listen, ':') != colon;
    if (!colon || colon == listen || bare_v6 || port < 0 || port > 65535 || *end ||
        colon[1] < '0' || colon[1] > '9') {
        return why_set(why, ERR_FORMAT, "--listen is '%.80s'; it must be HOST:PORT, like "
                       "127.0.0.1:8000 or [::1]:8000", listen);
    }
    return OK;
}

static enum err check_workers(struct config *c, struct why *why)
{
    if (!c->prefill && !c->decode && !c->both) c->both = 1;
    if (c->prefill && !c->decode && !c->both) {
        return why_set(why, ERR_FORMAT, "--prefill %llu needs --decode of at least 1",
                       (unsigned long long)c->prefill);
    }
    if (c->decode && !c->prefill && !c->both) {
        return why_set(why, ERR_FORMAT, "--decode %llu needs --prefill of at least 1",
                       (unsigned long long)c->decode);
    }
    uint64_t all = c->prefill + c->decode + c->both + c->spares;
    if (all > WORKER_COUNT_MAX) {
        return why_set(why, ERR_LIMIT, "%llu workers asked for; a job has at most %d",
                       (unsigned long long)all, WORKER_COUNT_MAX);
    }
    return OK;
}

/* file:///a/b is /a/b; the programs below open paths. */
static enum err check_model(struct config *c, struct why *why)
{
    if (strncmp(c->model, "file://", 7) != 0) return OK;
    if (c->model[7] != '/') {
        return why_set(why, ERR_FORMAT, "--model is '%.80s'; a file URI has three slashes: "
                       "file:///path", c->model);
    }
    c->model += 7;
    return OK;
}

enum err config_check(struct config *c, struct why *why)
{
    if (c->tensor_parallel_size != 1) {
        return why_set(why, ERR_UNSUPPORTED, "--tensor-parallel-size %llu is not supported yet; "
                       "only 1 is", (unsigned long long)c->tensor_parallel_size);
    }
    if (c->pipeline_parallel_size != 1) {
        return why_set(why, ERR_UNSUPPORTED, "--pipeline-parallel-size %llu is not supported; "
                       "only 1 is", (unsigned long long)c->pipeline_parallel_size);
    }
    if (c->block_size & (c->block_size - 1)) {
        return why_set(why, ERR_FORMAT, "--block-size is %llu; it must be a power of two",
                       (unsigned long long)c->block_size);
    }
    if (c->max_num_batched_tokens < c->max_num_seqs) {
        return why_set(why, ERR_FORMAT,
                       "--max-num-batched-tokens (%llu) must be at least --max-num-seqs (%llu)",
                       (unsigned long long)c->max_num_batched_tokens,
                       (unsigned long long)c->max_num_seqs);
    }
    if (strcmp(c->linear_backend, "cublas") == 0 && strcmp(c->backend, "cuda") != 0) {
        return why_set(why, ERR_FORMAT, "--linear-backend cublas is for --backend cuda, and that "
                       "is %s", c->backend);
    }
    enum err e = check_listen(c->listen, why);
    if (e == OK) e = check_model(c, why);
    return e == OK ? check_workers(c, why) : e;
}

enum err config_load(struct config *c, enum program program, int argc, char **argv, int *words_out,
                     struct why *why)
{
    struct arguments a = { 0 };
    config_defaults(c);
    enum err e = walk_arguments(NULL, &a, program, argc, argv, why);
    if (a.help) {
        config_help(program, stdout);
        exit(fflush(stdout) == 0 ? 0 : 1);
    }
    if (a.version) {
        printf("%s %s\n", program_name(program), RANKSERVE_VERSION);
        exit(fflush(stdout) == 0 ? 0 : 1);
    }
    if (e == OK && a.words && !words_out) {
        e = why_set(why, ERR_FORMAT, "unexpected word '%.60s'", a.word);
    }
    if (e == OK && a.file) e = service_load(c, a.file, why);
    if (e == OK && a.config) e = from_config_file(c, a.config, why);
    if (e == OK) e = from_environment(c, program, why);
    if (e == OK) e = walk_arguments(c, &a, program, argc, argv, why);
    if (e == OK) e = config_check(c, why);
    if (e != OK) return e;
    log_set_level(c->log_level);
    if (words_out) *words_out = a.words;
    if (a.print) {
        config_print(c, program, stdout);
        exit(fflush(stdout) == 0 ? 0 : 1);
    }
    return OK;
}

void config_print(const struct config *c, enum program program, FILE *out)
{
    size_t count;
    const struct option *o = option_table(&count);
    for (size_t i = 0; i < count; i++) {
        if (!(o[i].programs & program)) continue;
        struct buf b = { 0 };
        option_print(c, &o[i], &b);
        const char *text = b.size ? b.data : "";
        bool quoted = b.size && (strchr(" \"", text[0]) || text[b.size - 1] == ' ');
        fprintf(out, quoted ? "%s = \"%s\"\n" : "%s = %s\n", o[i].name, text);
        buf_release(&b);
    }
}

char **config_arguments(const struct config *c, enum program program)
{
    size_t count, used = 0;
    const struct option *o = option_table(&count);
    char **list = mem_array(count + 1, sizeof *list);
    for (size_t i = 0; i < count; i++) {
        if (!(o[i].programs & program) || option_is_default(c, &o[i])) continue;
        struct buf b = { 0 };
        buf_print(&b, "--%s=", o[i].name);
        option_print(c, &o[i], &b);
        list[used++] = buf_take(&b);
    }
    return list;
}
