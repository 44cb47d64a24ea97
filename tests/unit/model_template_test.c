/* tests/unit/model_template_test.c - chat templates: the language, its bounds, hostile templates.
 *
 * What jinja2 itself gives is compared in tests/service/test_template.py; here are the cases that
 * must hold without Python, the failures by kind, and templates mutated at random.
 */
#include <glob.h>
#include <jansson.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/limits.h"
#include "model/template.h"

static const char request_text[] =
    "{\"messages\": ["
    "  {\"role\": \"system\", \"content\": \" Be \\\"kind\\\".\\n\"},"
    "  {\"role\": \"user\", \"content\": \"Gr\\u00fc\\u00df \\u2603\"},"
    "  {\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"id\": \"call00001\","
    "     \"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": {\"x\": 1.5}}}]},"
    "  {\"role\": \"tool\", \"tool_call_id\": \"call00001\", \"content\": \"{}\"}],"
    " \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"d\","
    "     \"parameters\": {\"type\": \"object\", \"properties\": {\"x\": {\"type\": \"number\"}},"
    "     \"required\": [\"x\"]}}}],"
    " \"add_generation_prompt\": true, \"bos_token\": \"<s>\", \"eos_token\": \"</s>\","
    " \"n\": 7, \"s\": \"Hello\", \"l\": [3, 1, 2], \"none_value\": null}";

static json_t *request(void)
{
    json_t *j = json_loads(request_text, 0, NULL);
    assert_non_null(j);
    return j;
}

static enum err render(const char *text, size_t bytes, struct buf *out, struct why *why)
{
    struct template *t = NULL;
    enum err e = template_open(&t, text, bytes, why);
    if (e != OK) return e;
    json_t *j = request();
    e = template_render(t, j, 0, out, why);
    json_decref(j);
    template_close(t);
    return e;
}

static void expect(const char *text, const char *want)
{
    struct buf out = { 0 };
    struct why why = { "" };
    if (render(text, strlen(text), &out, &why) != OK) fail_msg("%s: %s", text, why.text);
    const char *got = out.data ? out.data : "";
    if (strcmp(got, want) != 0) fail_msg("%s gives\n%s\nnot\n%s", text, got, want);
    buf_release(&out);
}

static void expect_error(const char *text, enum err want, const char *part)
{
    struct buf out = { 0 };
    struct why why = { "" };
    enum err e = render(text, strlen(text), &out, &why);
    if (e != want || !strstr(why.text, part)) {
        fail_msg("%.80s: %s, \"%s\", not \"%s\"", text, err_text(e), why.text, part);
    }
    buf_release(&out);
}

static void the_language_gives_what_jinja_gives(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        { "", "" },
        { "plain } text", "plain } text" },
        { "a\n", "a" },
        { "a\r\nb\r", "a\nb" },
        { "{{ 1 + 2 * 3 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }}", "7 3 -4 2 3.5" },
        { "{{ 'a' ~ 1 + 2 }}", NULL },
        { "{{ 1 ~ 2 * 3 }}|{{ 2 ** 3 ** 2 }}|{{ -n }}", "16|64|-7" },
        { "{{ true }} {{ none }} {{ 1.0 }} {{ 1e16 }} {{ 1e-5 }} {{ missing }}.",
          "True None 1.0 1e+16 1e-05 ." },
        { "{{ [1, 'a', none, {'k': (1,)}] }}", "[1, 'a', None, {'k': (1,)}]" },
        { "{{ n > 3 and 'x' or 'y' }} {{ 1 < 2 < 3 }} {{ 2 not in l }}", "x True False" },
        { "{{ 'a' if n else 'b' }}{{ 'a' if not n }}", "a" },
        { "{{ messages[1].content[::-1] }} {{ messages[1:2][0]['role'] }}", "☃ ßürG user" },
        { "{% for x in l if x > 1 %}{{ loop.index }}{{ x }}{{ ',' if not loop.last }}{% endfor %}",
          "13,22" },
        { "{% for x in [] %}a{% else %}none{% endfor %}", "none" },
        { "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "32" },
        { "{% set x = 1 %}{% for i in l %}{% set x = i %}{% endfor %}{{ x }}", "1" },
        { "{% set s = namespace(n=0) %}{% for i in l %}{% set s.n = s.n + i %}{% endfor %}"
          "{{ s.n }}", "6" },
        { "{% macro m(a, b=2) %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}",
          "[12][13]" },
        { "{% macro w() %}<{{ caller() }}>{% endmacro %}{% call w() %}x{% endcall %}", "<x>" },
        { "{% set x | upper %}abc{% endset %}{{ x }}{% filter trim %} y {% endfilter %}", "ABCy" },
        { "{% generation %}g{% endgeneration %}{% raw %}{{ r }}{% endraw %}", "g{{ r }}" },
        { "  {% if n %}\n  x\n  {% endif %}\ny {#- c -#} z", "  x\nyz" },
        { "a\n  {%+ if n %}b{% endif +%}\nc", "a\n  b\nc" },
        { "{{ {'é': [1, 2.0, none, true, '\"\\n']} | tojson }}",
          "{\"é\": [1, 2.0, null, true, \"\\\"\\n\"]}" },
        { "{{ {'a': [1], 'b': {}} | tojson(indent=2) }}",
          "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}" },
        { "{{ messages | map(attribute='role') | join(',') }}", "system,user,assistant,tool" },
        { "{{ messages | selectattr('role', 'eq', 'user') | list | length }}", "1" },
        { "{{ l | sort }} {{ l | max }} {{ l | sum }} {{ l | first }} {{ l | reverse | list }}",
          "[1, 2, 3] 3 6 3 [2, 1, 3]" },
        { "{{ 'a,b,c'.split(',', 1) }} {{ ' x '.strip() }}. {{ 'abc'.replace('b', '') }}",
          "['a', 'b,c'] x. ac" },
        { "{{ 'é'.upper() }} {{ 'Ab c' | title }} {{ 'x' is string }} {{ n is divisibleby 7 }}",
          "É Ab C True True" },
        { "{% set a = [] %}{% do a.append(1) %}{% set _ = a.append(2) %}{{ a }}", "[1, 2]" },
        { "{{ strftime_now('%Y') | length }}", "4" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i][1]) expect(cases[i][0], cases[i][1]);
        else expect_error(cases[i][0], ERR_FORMAT, "unsupported operand");
    }
}

static void failures_say_what_and_where(void **state)
{
    (void)state;
    expect_error("a\n{{ n + }}", ERR_FORMAT, "line 2, column 8: expected an expression");
    expect_error("{% if n %}", ERR_FORMAT, "expected endif, got the end of the template");
    expect_error("{% zork %}", ERR_FORMAT, "'zork'");
    expect_error("\n\n{{ 'abc }}", ERR_FORMAT, "line 3, column 4: a string without end");
    expect_error("{{ (1] }}", ERR_FORMAT, "closing bracket");
    expect_error("\n{{ missing.x }}", ERR_FORMAT, "line 2: 'missing' is undefined");
    expect_error("{{ s.x.y }}", ERR_FORMAT, "'str object' has no attribute 'x'");
    expect_error("{{ n | zork }}", ERR_FORMAT, "no filter named 'zork'");
    expect_error("{{ 1 / 0 }}", ERR_FORMAT, "division by zero");
    expect_error("{{ '\xff' }}", ERR_FORMAT, "UTF-8");
    expect_error("{% break %}", ERR_FORMAT, "outside of a loop");
}

static void raise_exception_gives_the_template_s_words_alone(void **state)
{
    (void)state;
    struct why why;
    struct buf out = { 0 };
    const char *text = "x{{ raise_exception('Nür ' ~ n) }}";
    assert_int_equal(render(text, strlen(text), &out, &why), ERR_DENIED);
    assert_string_equal(why.text, "Nür 7");
    /* A long message is cut between characters. */
    text = "{{ raise_exception('x' ~ 'ü' * 999) }}";
    assert_int_equal(render(text, strlen(text), &out, &why), ERR_DENIED);
    assert_int_equal(strlen(why.text), 511);
    text = "{{ raise_exception('ü' * 999) }}";
    assert_int_equal(render(text, strlen(text), &out, &why), ERR_DENIED);
    assert_int_equal(strlen(why.text), 510);
    buf_release(&out);
}

static void a_failure_leaves_the_output_as_it_was(void **state)
{
    (void)state;
    struct why why;
    struct buf out = { 0 };
    buf_text(&out, "before ");
    assert_int_equal(render("a{{ n }}", 8, &out, &why), OK);
    assert_string_equal(out.data, "before a7");
    const char *text = "long text {{ missing.x }}";
    assert_int_equal(render(text, strlen(text), &out, &why), ERR_FORMAT);
    assert_string_equal(out.data, "before a7");
    out.limit = 12;
    assert_int_equal(render("abcdef", 6, &out, &why), ERR_LIMIT);
    buf_release(&out);
}

static char *repeated(const char *text, size_t times)
{
    struct buf b = { 0 };
    for (size_t i = 0; i < times; i++) buf_text(&b, text);
    return buf_take(&b);
}

static void expect_deep(const char *open, const char *middle, const char *shut, size_t times)
{
    char *head = repeated(open, times), *tail = repeated(shut, times);
    struct buf b = { 0 };
    buf_print(&b, "{{ %s%s%s }}", head, middle, tail);
    expect_error(b.data, ERR_LIMIT, "");
    free(head);
    free(tail);
    buf_release(&b);
}

static void every_bound_is_an_answer(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "{{ 'x' * 10 ** 9 }}",
        "{{ [1] * 10 ** 15 }}",
        "{{ ('x' * 9999999) * 10 ** 18 }}",
        "{{ range(10 ** 9) | list }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{% if n %}{% for i in [1] %}{{ [[[[[[[[[[[[[[[[[[m()]]]]]]]]]]]]]]]]]] }}"
        "{% endfor %}{% endif %}{% endmacro %}{{ m() }}",
        "{% set s = namespace(x='0123456789') %}{% for i in range(99) %}{% set s.x = s.x ~ s.x %}"
        "{% endfor %}",
        "{% set x = 'x' * 4000000 %}{% for i in range(99) %}{{ x }}{% endfor %}",
        "{% set a = [1] %}{% for x in a %}{% do a.append(1) %}{% endfor %}",
        "{% set a = [] %}{% do a.append(a) %}{{ a }}",
        "{% set a = [] %}{% do a.append(a) %}{{ a | tojson }}",
        "{% set a = [] %}{% do a.append(a) %}{% set b = [] %}{% do b.append(b) %}{{ a == b }}",
        "{% set s = namespace(v=[1]) %}{% for i in range(60) %}{% set s.v = [s.v, s.v] %}"
        "{% endfor %}{{ s.v }}",
        "{% set x = 'ab' * 2000000 %}{% for i in range(90000) %}{% if 'q' in x %}{% endif %}"
        "{% endfor %}",
        "{{ 9223372036854775807 + 1 }}",
        "{{ -9223372036854775807 - 2 }}",
        "{{ 4611686018427387904 * 2 }}",
        "{{ (-9223372036854775807 - 1) // -1 }}",
        "{{ -(-9223372036854775807 - 1) }}",
        "{{ 3 ** 99 }}",
        "{{ 99999999999999999999 }}",
        "{{ '99999999999999999999' | int }}",
        "{{ 1e300 | int }}",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) expect_error(cases[i], ERR_LIMIT, "");
    expect("{{ (-9223372036854775807 - 1) % -1 }} {{ 0 ** 0 }} {{ 1 ** 10 ** 18 }}", "0 1 1");
    expect("{{ l[9223372036854775807:] }}{{ l[::-9223372036854775807] }}", "[][2]");
}

static void deep_nesting_is_refused(void **state)
{
    (void)state;
    expect_deep("(", "1", ")", 5000);
    expect_deep("[", "", "]", 65);
    expect_deep("-", "1", "", 5000);
    expect_deep("not ", "1", "", 5000);
    expect_deep("", "1", " + 1", 5000);
    expect_deep("", "s", ".x", 5000);
    expect_deep("", "s", " | trim", 5000);
    expect_deep("", "1", " if 1 else 1", 5000);
    expect_deep("l[", "0", "]", 5000);
    char *deep = repeated("{% if n %}", 5000);
    expect_error(deep, ERR_LIMIT, "nested");
    free(deep);
    /* What real templates nest is far from the bounds. */
    char *chain = repeated(" ~ 'x'", 200), *sum = repeated(" + 1", 200);
    struct buf b = { 0 };
    buf_print(&b, "{{ ('' %s) | length }} {{ 0 %s }}", chain, sum);
    expect(b.data, "200 200");
    buf_release(&b);
    free(chain);
    free(sum);
}

static void a_template_too_long_is_refused(void **state)
{
    (void)state;
    char *text = repeated("0123456789abcdef", TEMPLATE_BYTES_MAX / 16 + 1);
    struct template *t;
    struct why why;
    assert_int_equal(template_open(&t, text, strlen(text), &why), ERR_LIMIT);
    assert_int_equal(template_open(&t, text, TEMPLATE_BYTES_MAX, &why), OK);
    template_close(t);
    free(text);
}

static void *render_many(void *template)
{
    json_t *j = request();
    struct buf out = { 0 };
    for (int i = 0; i < 50; i++) {
        buf_clear(&out);
        if (template_render(template, j, 0, &out, NULL) != OK) break;
    }
    json_decref(j);
    return buf_take(&out);
}

static void threads_share_a_template(void **state)
{
    (void)state;
    static const char text[] =
        "{% for m in messages %}{{ m | tojson }}{{ m.role.upper() }}{% endfor %}";
    struct template *t;
    struct why why;
    pthread_t threads[4];
    char *texts[4];
    assert_int_equal(template_open(&t, text, sizeof text - 1, &why), OK);
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, render_many, t);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], (void **)&texts[i]);
    for (int i = 0; i < 4; i++) {
        assert_true(strlen(texts[i]) > 100);
        assert_string_equal(texts[i], texts[0]);
    }
    for (int i = 0; i < 4; i++) free(texts[i]);
    template_close(t);
}

/* Mutants. */

static uint64_t random_state = 0x9e3779b97f4a7c15;

static size_t random_below(size_t bound)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return bound ? (size_t)(random_state % bound) : 0;
}

struct text {
    char *data;
    size_t bytes;
};

static struct text read_text(const char *path)
{
    struct buf b = { 0 };
    char piece[4096];
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    for (size_t got; (got = fread(piece, 1, sizeof piece, f)) > 0;) buf_add(&b, piece, got);
    fclose(f);
    struct text t = { NULL, b.size };
    t.data = buf_take(&b);
    return t;
}

/* Cuts, doubles, joins in another template, or writes something of the language. */
static void mutate(struct buf *b, const struct text *t, const struct text *other)
{
    static const char *const words[] = {
        "{{ ", " }}", "{% ", " %}", "-", "(", ")", "[", "]", "{", "}", " | ", "'", "1", " in ",
        " is ", " not ", "{% endfor %}", "{% endif %}", "namespace(", ".x", "[::-1]", "*", "**",
        "range(99)", " if ", " else ", "\\", "\xc3", "{#", "messages", "loop.", "tojson",
        "\"", ",", "=", "~",
    };
    size_t from = random_below(t->bytes), span = random_below(40);
    if (span > t->bytes - from) span = t->bytes - from;
    buf_clear(b);
    buf_add(b, t->data, from);
    const char *word = words[random_below(sizeof words / sizeof *words)];
    size_t at = random_below(other->bytes);
    switch (random_below(4)) {
    case 0: break;
    case 1:
        buf_add(b, t->data + from, span);
        buf_add(b, t->data + from, span);
        break;
    case 2: buf_add(b, other->data + at, other->bytes - at < 60 ? other->bytes - at : 60); break;
    default:
        buf_text(b, word);
        span = random_below(2);
        if (span > t->bytes - from) span = 0;
    }
    buf_add(b, t->data + from + span, t->bytes - from - span);
}

static void mutated_templates_neither_crash_nor_run_away(void **state)
{
    (void)state;
    glob_t found;
    struct text texts[32];
    assert_int_equal(glob("tests/data/templates/*.jinja", 0, NULL, &found), 0);
    size_t count = found.gl_pathc < 32 ? found.gl_pathc : 32;
    for (size_t i = 0; i < count; i++) texts[i] = read_text(found.gl_pathv[i]);
    globfree(&found);
    struct buf text = { 0 }, out = { 0 };
    json_t *j = request();
    size_t rendered = 0, failed = 0;
    uint64_t end = clock_now_ns() + 2500 * NS_PER_MS;
    for (int round = 0; round < 4000 && clock_now_ns() < end; round++) {
        struct text t = texts[random_below(count)];
        mutate(&text, &t, &texts[random_below(count)]);
        struct template *made;
        struct why why = { "" };
        buf_clear(&out);
        enum err e = template_open(&made, text.data, text.size, &why);
        if (e == OK) {
            e = template_render(made, j, 0, &out, &why);
            template_close(made);
        }
        if (e == OK) rendered++;
        else {
            failed++;
            assert_true(why.text[0] != '\0');
        }
    }
    assert_true(rendered > 20 && failed > 20);
    json_decref(j);
    buf_release(&text);
    buf_release(&out);
    for (size_t i = 0; i < count; i++) free(texts[i].data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_language_gives_what_jinja_gives),
        cmocka_unit_test(failures_say_what_and_where),
        cmocka_unit_test(raise_exception_gives_the_template_s_words_alone),
        cmocka_unit_test(a_failure_leaves_the_output_as_it_was),
        cmocka_unit_test(every_bound_is_an_answer),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(a_template_too_long_is_refused),
        cmocka_unit_test(threads_share_a_template),
        cmocka_unit_test(mutated_templates_neither_crash_nor_run_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
