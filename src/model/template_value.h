/* model/template_value.h - the values of the chat-template language, and the memory they live in.
 *
 * Private to src/model/template*.c.  An arena owns everything made while one template is parsed or
 * rendered: its memory, its budget of steps, and the way out on failure (a jump back to
 * template_open or template_render, so that no function below them has an error to pass on).
 * Always true: nothing here outlives its arena; strings are valid UTF-8 and never change; lists,
 * dicts and namespaces are shared by reference, as in Python.
 */
#ifndef RANKSERVE_MODEL_TEMPLATE_VALUE_H
#define RANKSERVE_MODEL_TEMPLATE_VALUE_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "common/limits.h"

#define TEMPLATE_MEMORY_BYTES_MAX ((size_t)64 << 20)

enum {
    TP_VALUE_DEPTH_MAX = JSON_DEPTH_MAX + TEMPLATE_DEPTH_MAX, /* values inside values          */
    TP_HEIGHT_MAX = 256,     /* of a syntax tree: a + b + ... leans left without any bracket   */
    TP_EVAL_DEPTH_MAX = 1024, /* evaluator calls on the C stack, over all macros              */
    TP_RANGE_MAX = 100000,   /* numbers in one range(), as Jinja's sandbox has it              */
    TP_BYTES_PER_STEP = 64,  /* bytes read or written that cost one step                      */
    TP_ITEMS_PER_STEP = 16,  /* items looked at that cost one step                             */
};

/* Arena. */

struct tp_chunk;

struct tp_arena {
    struct tp_chunk *chunks;   /* newest first */
    size_t bytes, limit;       /* taken from the system so far; the most that may be */
    uint64_t steps_left;
    unsigned line, column;     /* where we are, for messages; column 0: not known */
    enum err err;              /* what the jump carries */
    struct why *why;
    jmp_buf jump;
};

void tp_arena_open(struct tp_arena *a, size_t limit, uint64_t steps, struct why *why);
void tp_arena_close(struct tp_arena *a);
/* Zeroed, aligned for any value; jumps with ERR_LIMIT when the arena is full. */
void *tp_alloc(struct tp_arena *a, size_t bytes);
void *tp_alloc_array(struct tp_arena *a, size_t count, size_t bytes);
/* Grows the block at `old`; in place when it is the newest.  The new part is not zeroed. */
void *tp_grow(struct tp_arena *a, void *old, size_t old_bytes, size_t new_bytes);
/* Pays for work; jumps with ERR_LIMIT when the budget is spent. */
void tp_steps(struct tp_arena *a, uint64_t steps);
void tp_pay_bytes(struct tp_arena *a, size_t bytes);
void tp_pay_items(struct tp_arena *a, size_t items);

/* Fills `why` ("line 3: ...") and jumps. */
_Noreturn void tp_fail(struct tp_arena *a, enum err e, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Likewise with the template's own words alone, cut to what fits. */
_Noreturn void tp_fail_words(struct tp_arena *a, enum err e, const char *words, size_t bytes);

/* Values. */

enum tp_kind {
    TP_UNDEFINED, TP_NONE, TP_BOOL, TP_INT, TP_FLOAT, TP_TEXT, TP_LIST, TP_DICT, TP_SPACE,
    TP_LOOP, TP_MACRO, TP_BOUND, TP_FUNCTION, TP_CYCLER, TP_JOINER,
    TP_MISSING,                /* an argument that was not given; never seen by a template */
};

struct tp_text {
    const char *data;
    size_t bytes;
};

struct tp_value {
    uint8_t kind;              /* enum tp_kind */
    uint8_t owner;             /* TP_UNDEFINED: of the object that lacks it; TP_MISSING: none */
    union {
        bool b;
        int64_t i;
        double f;
        const struct tp_text *text;       /* TP_TEXT; TP_UNDEFINED: the name, or NULL */
        struct tp_list *list;
        struct tp_dict *dict;             /* TP_DICT, TP_SPACE */
        struct tp_loop *loop;
        struct tp_macro *macro;
        const struct tp_bound *bound;
        const struct tp_builtin *function;
        struct tp_cycler *cycler;         /* TP_CYCLER, TP_JOINER */
    } as;
};

/* One array for all of Python's sequences; they differ in how they print and what is allowed. */
enum tp_shape { TP_SHAPE_LIST, TP_SHAPE_TUPLE, TP_SHAPE_RANGE, TP_SHAPE_VIEW, TP_SHAPE_GENERATOR };

struct tp_list {
    struct tp_value *items;
    size_t count, room;
    enum tp_shape shape;
};
struct tp_pair {
    struct tp_value key, value;
};
struct tp_dict {
    struct tp_pair *pairs;     /* in order of insertion */
    size_t count, room;
};
struct tp_bound {
    struct tp_value self;
    const struct tp_builtin *function;
};
struct tp_cycler {
    struct tp_list *items;     /* a joiner has one: its separator */
    size_t at;
};

struct tp_value tp_undefined(const struct tp_text *name, enum tp_kind owner);
struct tp_value tp_none(void);
struct tp_value tp_bool(bool b);
struct tp_value tp_int(int64_t i);
struct tp_value tp_float(double f);
struct tp_value tp_list(struct tp_list *l);
struct tp_value tp_dict(struct tp_dict *d);
/* References `data`, which must live as long as the arena. */
struct tp_value tp_text(struct tp_arena *a, const char *data, size_t bytes);
struct tp_value tp_word(struct tp_arena *a, const char *text);

struct tp_list *tp_list_new(struct tp_arena *a, size_t room, enum tp_shape shape);
void tp_list_add(struct tp_arena *a, struct tp_list *l, struct tp_value v);
/* Makes a hole at `at` <= count. */
void tp_list_insert(struct tp_arena *a, struct tp_list *l, size_t at, struct tp_value v);
struct tp_value tp_list_remove(struct tp_list *l, size_t at);

struct tp_dict *tp_dict_new(struct tp_arena *a);
/* NULL when there is none; keys that Python cannot hash (lists, dicts) jump. */
struct tp_value *tp_dict_find(struct tp_arena *a, const struct tp_dict *d, struct tp_value key);
struct tp_value *tp_dict_find_word(struct tp_arena *a, const struct tp_dict *d, const char *data,
                                   size_t bytes);
void tp_dict_set(struct tp_arena *a, struct tp_dict *d, struct tp_value key, struct tp_value v);
/* False when there was none. */
bool tp_dict_remove(struct tp_arena *a, struct tp_dict *d, struct tp_value key,
                    struct tp_value *out);

bool tp_is_number(struct tp_value v);             /* bool, int or float */
bool tp_is_int(struct tp_value v);                /* bool or int */
int64_t tp_as_int(struct tp_value v);             /* of tp_is_int */
double tp_as_float(struct tp_value v);            /* of tp_is_number */
bool tp_is_shape(struct tp_value v, enum tp_shape shape);
bool tp_text_is(const struct tp_text *t, const char *word);
bool tp_true(struct tp_value v);
bool tp_same(struct tp_value x, struct tp_value y);              /* Python's `is` */
bool tp_equal(struct tp_arena *a, struct tp_value x, struct tp_value y);
/* <0, 0, >0; jumps when Python would not order them.  NaN orders after everything. */
int tp_compare(struct tp_arena *a, struct tp_value x, struct tp_value y);
bool tp_contains(struct tp_arena *a, struct tp_value in, struct tp_value v);
size_t tp_length(struct tp_arena *a, struct tp_value v);
/* What `for` sees: the list itself, a dict's keys, a string's characters; jumps for others.
 * A generator is emptied by it, as in Python. */
struct tp_list *tp_iterate(struct tp_arena *a, struct tp_value v);
/* As Python names the type: "str", "dict". */
const char *tp_kind_name(struct tp_value v);
_Noreturn void tp_fail_undefined(struct tp_arena *a, struct tp_value v);

/* Text (template_text.c). */

/* Characters are code points; offsets are bytes. */
size_t tp_chars(struct tp_arena *a, const struct tp_text *t);
size_t tp_char_offset(struct tp_arena *a, const struct tp_text *t, size_t chars);
/* Code point at `at` < bytes and, in *bytes, its length. */
uint32_t tp_char_at(const char *data, size_t *bytes);
bool tp_utf8_valid(const char *data, size_t bytes);
bool tp_is_space(uint32_t c);                     /* Python's str.isspace */
/* Bytes of white space at the start, and the length that is left without it at the end. */
size_t tp_space_prefix(const char *data, size_t bytes);
size_t tp_space_trimmed(const char *data, size_t bytes);
/* Offset of the first `needle` at or after `from`, or SIZE_MAX. */
size_t tp_find(struct tp_arena *a, const struct tp_text *in, const struct tp_text *needle,
               size_t from);

/* A string that grows, in the arena. */
struct tp_sink {
    struct tp_arena *arena;
    char *data;
    size_t bytes, room;
};
void tp_sink_add(struct tp_sink *s, const char *data, size_t bytes);
void tp_sink_word(struct tp_sink *s, const char *text);
void tp_sink_char(struct tp_sink *s, uint32_t c);
void tp_sink_str(struct tp_sink *s, struct tp_value v);   /* Python's str()  */
void tp_sink_repr(struct tp_sink *s, struct tp_value v);  /* Python's repr() */
void tp_sink_float(struct tp_sink *s, double f);          /* repr of a float */
struct tp_value tp_sink_take(struct tp_sink *s);
/* str(v): the same text when it is one. */
const struct tp_text *tp_str(struct tp_arena *a, struct tp_value v);

/* JSON (template_json.c). */

struct json_t;
/* Strings point into `j`, which must live as long as the arena. */
struct tp_value tp_from_json(struct tp_arena *a, const struct json_t *j);
/* json.dumps(v, ensure_ascii=False, indent=..., separators=..., sort_keys=...). */
struct tp_json_style {
    const struct tp_text *indent;         /* NULL: on one line */
    const struct tp_text *comma, *colon;
    bool sort_keys;
};
void tp_sink_json(struct tp_sink *s, struct tp_value v, const struct tp_json_style *style);

#endif
