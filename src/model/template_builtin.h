/* model/template_builtin.h - what templates can call by name: filters, tests, methods, globals.
 *
 * Private to src/model/template*.c.  Each is a row of a table: its name, the names of its
 * parameters, and a function that gets them bound.
 */
#ifndef RANKSERVE_MODEL_TEMPLATE_BUILTIN_H
#define RANKSERVE_MODEL_TEMPLATE_BUILTIN_H

#include "model/template_value.h"

struct tp_run;

enum { TP_ARGS_MAX = 6 };

struct tp_named {
    struct tp_text name;
    struct tp_value value;
};
struct tp_args {
    struct tp_value *positional;
    size_t count;
    struct tp_named *named;
    size_t named_count;
};

struct tp_call {
    struct tp_run *run;
    struct tp_arena *arena;
    struct tp_value self;                  /* what is filtered or tested; a method's object */
    struct tp_value arg[TP_ARGS_MAX];      /* TP_MISSING where not given */
    const struct tp_args *raw;
};

struct tp_builtin {
    const char *name;
    const char *params;                    /* "width first blank"; NULL: takes `raw` as it is */
    unsigned required;                     /* of the params, the first so many */
    struct tp_value (*call)(struct tp_call *c);
};

const struct tp_builtin *tp_find_filter(const struct tp_text *name);
const struct tp_builtin *tp_find_test(const struct tp_text *name);
const struct tp_builtin *tp_find_global(const struct tp_text *name);
/* Of text, lists, dicts and cyclers; NULL when there is none. */
const struct tp_builtin *tp_find_method(struct tp_value object, const struct tp_text *name);

/* Searches a table that ends with a row without name. */
const struct tp_builtin *tp_find_row(const struct tp_builtin *rows, const struct tp_text *name);

/* Of a bound argument: what was given, or the default. */
int64_t tp_arg_int(struct tp_call *c, unsigned at, int64_t otherwise);
bool tp_arg_bool(struct tp_call *c, unsigned at, bool otherwise);
const struct tp_text *tp_arg_str(struct tp_call *c, unsigned at, const char *otherwise);
/* Of an argument that must be a string: jumps when it is not. */
const struct tp_text *tp_arg_text(struct tp_call *c, unsigned at);

/* Shared by filters and methods (template_string.c). */
struct tp_value tp_strip(struct tp_arena *a, const struct tp_text *t, const struct tp_text *chars,
                         bool left, bool right);
struct tp_value tp_replace(struct tp_arena *a, const struct tp_text *t, const struct tp_text *old,
                           const struct tp_text *fresh, int64_t count);
struct tp_list *tp_split_lines(struct tp_arena *a, const struct tp_text *t, bool keep_ends);
enum tp_case { TP_UPPER, TP_LOWER, TP_CAPITALIZE, TP_TITLE_METHOD, TP_TITLE_FILTER };
struct tp_value tp_change_case(struct tp_run *run, const struct tp_text *t, enum tp_case how);
/* text % values */
struct tp_value tp_percent(struct tp_arena *a, const struct tp_text *format,
                           const struct tp_value *values, size_t count,
                           const struct tp_dict *named);
/* Python's int(text, base) and float(text); false when they would raise. */
bool tp_read_int(struct tp_arena *a, const struct tp_text *t, int base, int64_t *out);
bool tp_read_float(const struct tp_text *t, double *out);
/* int(f); jumps when it does not fit 64 bits, false for inf and nan. */
bool tp_float_to_int(struct tp_arena *a, double f, int64_t *out);

#endif
