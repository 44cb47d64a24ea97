/* model/template_syntax.h - from template text to a syntax tree.
 *
 * Private to src/model/template*.c.  The lexer gives tokens on demand, the parser makes the tree in
 * the template's own arena; both leave by tp_fail with line and column.  The tree is read-only
 * afterwards and shared by all renderings.  Grammar and precedence are Jinja2's own.
 */
#ifndef RANKSERVE_MODEL_TEMPLATE_SYNTAX_H
#define RANKSERVE_MODEL_TEMPLATE_SYNTAX_H

#include "model/template_value.h"

enum tp_token_kind {
    TP_T_END, TP_T_DATA, TP_T_PRINT_BEGIN, TP_T_PRINT_END, TP_T_BLOCK_BEGIN, TP_T_BLOCK_END,
    TP_T_NAME, TP_T_STRING, TP_T_INT, TP_T_FLOAT, TP_T_OPERATOR,
};

/* Operators are their own characters; two-character ones pack both. */
#define TP_OP2(x, y) ((unsigned)(x) << 8 | (unsigned)(y))
enum tp_operator {
    TP_OP_FLOORDIV = TP_OP2('/', '/'), TP_OP_POW = TP_OP2('*', '*'), TP_OP_EQ = TP_OP2('=', '='),
    TP_OP_NE = TP_OP2('!', '='), TP_OP_GE = TP_OP2('>', '='), TP_OP_LE = TP_OP2('<', '='),
    TP_OP_IN = TP_OP2('i', 'n'), TP_OP_NOT_IN = TP_OP2('n', 'i'), /* of TP_N_OPERAND only */
};

struct tp_token {
    enum tp_token_kind kind;
    unsigned op;               /* TP_T_OPERATOR */
    unsigned line, column;     /* from 1 */
    struct tp_text text;       /* data; name; string with escapes resolved */
    struct tp_value value;     /* of TP_T_INT and TP_T_FLOAT */
};

struct tp_lexer {
    struct tp_arena *arena;
    const char *text;
    size_t bytes, at;
    unsigned line;
    size_t line_start;
    enum { TP_MODE_TEXT, TP_MODE_BLOCK, TP_MODE_PRINT } mode;
    bool begin_pending;        /* the tag after the text just given is still to be given */
    bool line_starting;        /* what was read last ended with a newline */
    char brackets[TEMPLATE_DEPTH_MAX];
    size_t bracket_count;
};

/* `text` is normalised already: "\n" only, no trailing newline, valid UTF-8. */
void tp_lexer_open(struct tp_lexer *lx, struct tp_arena *a, const char *text, size_t bytes);
struct tp_token tp_lexer_next(struct tp_lexer *lx);
/* Counts lines up to `at` and goes there. */
void tp_lexer_move(struct tp_lexer *lx, size_t at);
/* The tokens inside a tag (template_lex_tag.c). */
struct tp_token tp_lexer_tag(struct tp_lexer *lx);

/* What the slots of a node mean, by kind; "list" is a chain through `next`.
 *
 *   expression    a              b            c           text, value, op
 *   CONST                                                 value
 *   NAME                                                  text
 *   LIST TUPLE    list of items
 *   DICT          list: key, value, key, value ...
 *   ATTRIBUTE     object                                  text
 *   ITEM          object         index
 *   SLICE         start          stop         step        (any may be NULL; only as an index)
 *   CALL          callee         list of arguments        (KEYWORD: text, a)
 *   FILTER        operand        arguments                text, function; operand NULL: the block
 *   TEST          operand        arguments                text, function
 *   NOT NEGATE PLUS  operand
 *   BINARY        left           right                    op
 *   AND OR        left           right
 *   CONCAT        list of operands
 *   COMPARE       first          list of OPERAND (op, a)
 *   CONDITION     then           test         else or NULL
 *
 *   statement
 *   DATA                                                  text
 *   PRINT DO      expression
 *   IF            list of BRANCH (a: test or NULL for else, b: body)
 *   FOR           target         iterable     body        d: test or NULL, e: else body or NULL
 *   SET           target         value
 *   SET_BLOCK     target         filter/NULL  body
 *   MACRO         list of PARAM               body        text; op: enum tp_macro_uses
 *   CALL_BLOCK    CALL           MACRO
 *   FILTER_BLOCK  filter                      body
 *   WITH          list of PARAM (a: value)    body
 *   BREAK CONTINUE
 *
 *   target: NAME, TUPLE of targets, or SPACE_NAME (text . value)
 */
enum tp_node_kind {
    TP_N_CONST, TP_N_NAME, TP_N_LIST, TP_N_TUPLE, TP_N_DICT, TP_N_ATTRIBUTE, TP_N_ITEM, TP_N_SLICE,
    TP_N_CALL, TP_N_KEYWORD, TP_N_FILTER, TP_N_TEST, TP_N_NOT, TP_N_NEGATE, TP_N_PLUS, TP_N_BINARY,
    TP_N_AND, TP_N_OR, TP_N_CONCAT, TP_N_COMPARE, TP_N_OPERAND, TP_N_CONDITION,
    TP_N_DATA, TP_N_PRINT, TP_N_DO, TP_N_IF, TP_N_BRANCH, TP_N_FOR, TP_N_SET, TP_N_SET_BLOCK,
    TP_N_MACRO, TP_N_PARAM, TP_N_CALL_BLOCK, TP_N_FILTER_BLOCK, TP_N_WITH, TP_N_BREAK,
    TP_N_CONTINUE, TP_N_SPACE_NAME,
};

enum tp_macro_uses { TP_USES_VARARGS = 1, TP_USES_KWARGS = 2, TP_USES_CALLER = 4 };

struct tp_builtin;

struct tp_node {
    uint8_t kind;              /* enum tp_node_kind */
    uint16_t height;           /* of the tree below, at most TP_HEIGHT_MAX */
    uint16_t op;               /* enum tp_operator or one character */
    unsigned line;
    struct tp_node *a, *b, *c, *d, *e;
    struct tp_node *next;
    struct tp_text text;
    struct tp_value value;
    const struct tp_builtin *function;   /* NULL: no such filter or test, told when it runs */
};

/* A list under construction. */
struct tp_chain {
    struct tp_node *first, **tail;
    unsigned height;
};

struct tp_parser {
    struct tp_arena *arena;
    struct tp_lexer lexer;
    struct tp_token now, ahead;
    unsigned depth;            /* nesting of brackets, operators and blocks */
    unsigned loops;            /* enclosing loops that `break` could leave */
    unsigned uses;             /* enum tp_macro_uses seen since the macro began */
};

struct tp_node *tp_parse(struct tp_arena *a, const char *text, size_t bytes);

/* Shared by the parsers of statements (template_parse.c) and of expressions (template_expr.c). */
_Noreturn void tp_syntax(struct tp_parser *p, const struct tp_token *at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
_Noreturn void tp_unexpected(struct tp_parser *p, const char *wanted);
void tp_advance(struct tp_parser *p);
bool tp_at_op(const struct tp_parser *p, unsigned op);
bool tp_at_name(const struct tp_parser *p, const char *name);
bool tp_skip_op(struct tp_parser *p, unsigned op);
bool tp_skip_name(struct tp_parser *p, const char *name);
void tp_expect_op(struct tp_parser *p, unsigned op);
struct tp_text tp_expect_name(struct tp_parser *p);
void tp_enter(struct tp_parser *p);               /* one level deeper, or ERR_LIMIT */
void tp_leave(struct tp_parser *p);

struct tp_node *tp_node_new(struct tp_parser *p, enum tp_node_kind kind, unsigned line);
/* Sets the slots and the height; any may be NULL. */
void tp_node_fill(struct tp_parser *p, struct tp_node *n, struct tp_node *a, struct tp_node *b,
                  struct tp_node *c);
struct tp_chain tp_chain_new(void);
void tp_chain_add(struct tp_chain *list, struct tp_node *n);
/* `height` becomes the height of n's subtree when it is the larger. */
void tp_node_raise(struct tp_parser *p, struct tp_node *n, unsigned height);

struct tp_node *tp_parse_expression(struct tp_parser *p, bool with_condition);
/* An expression, or a tuple without brackets; ends before a tag's end or the name `stop`. */
struct tp_node *tp_parse_tuple(struct tp_parser *p, bool with_condition, const char *stop);
struct tp_node *tp_parse_target(struct tp_parser *p, const char *stop, bool with_space);
/* `name(args) | name ...`: as after a `|`.  `operand` NULL: what the block gives. */
struct tp_node *tp_parse_filter(struct tp_parser *p, struct tp_node *operand);

#endif
