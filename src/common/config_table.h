/* common/config_table.h - the rows of the option table, for those who map other texts to options:
 * config.c (arguments, environment, files) and service.c (the InferenceService document).
 */
#ifndef RANKSERVE_COMMON_CONFIG_TABLE_H
#define RANKSERVE_COMMON_CONFIG_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "common/config.h"
#include "common/mem.h"

enum option_kind {
    OPTION_TEXT,
    OPTION_CHOICE,                    /* one of `choices`, separated by spaces */
    OPTION_COUNT,                     /* 8192, 8k = 8000, 8K = 8192            */
    OPTION_BYTES,                     /* as OPTION_COUNT, also 1GiB, 1Gi, 1GB  */
    OPTION_NUMBER,                    /* with a fraction; up to 1: also "80%"   */
    OPTION_TIME,                      /* "1h30m", "90s", "500ms"; kept in ms   */
    OPTION_SWITCH,                    /* --name, --no-name                     */
};

struct option {
    const char *name;                 /* without the dashes                    */
    const char *group;                /* heading in --help                     */
    enum option_kind kind;
    unsigned programs;                /* enum program, or-ed                   */
    size_t offset;                    /* of the field in struct config         */
    const char *initial;              /* default, as a person would write it   */
    double min, max;                  /* counts, bytes, numbers: both included */
    const char *choices;
    const char *zero_word;            /* word for 0: "auto"; NULL: none        */
    const char *metavar;
    const char *help;
};

/* All rows, in the order of --help. */
const struct option *option_table(size_t *count_out);
/* By name, in which '_' is as good as '-'; NULL when there is none. */
const struct option *option_find(const char *name);

/* Sets the field of `o` from text; keeps a copy.  On failure `why` names the option as `label`. */
enum err option_set(struct config *c, const struct option *o, const char *label, const char *text,
                    struct why *why);
void option_print(const struct config *c, const struct option *o, struct buf *out);
bool option_is_default(const struct config *c, const struct option *o);

/* All defaults, nothing else. */
void config_defaults(struct config *c);
/* What must hold between options; fills in what depends on others. */
enum err config_check(struct config *c, struct why *why);
/* A copy that lives as long as the process; equal texts have one.  From any thread. */
const char *config_keep(const char *text, size_t bytes);
/* "max-model-len" -> "RANKSERVE_MAX_MODEL_LEN". */
void option_environment_name(const struct option *o, char *out, size_t bytes);
/* Unsets the options' variables: for who starts programs with all settings as arguments. */
void config_forget_environment(void);
void config_help(enum program program, FILE *out);

#endif
