/* tests/unit/common_yaml_test.c - the bounded YAML tree. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/mem.h"
#include "common/yaml.h"

static void refused(const char *text, size_t bytes, const char *part)
{
    struct yaml *y;
    struct why why = { "" };
    assert_int_not_equal(yaml_read(&y, text, bytes, "f", &why), OK);
    if (!strstr(why.text, part)) fail_msg("'%s' does not say '%s'", why.text, part);
}

static void a_tree_keeps_order_lines_and_quotes(void **state)
{
    (void)state;
    static const char text[] = "a: 1\nb:\n  c: \"2\"\n  d: [x, y]\n---\n---\ne: ~\n";
    struct yaml *y;
    struct why why;
    assert_int_equal(yaml_read(&y, text, sizeof text - 1, "f", &why), OK);
    assert_int_equal(yaml_document_count(y), 3);
    const struct yaml_node *root = yaml_document(y, 0);
    const struct yaml_node *c = yaml_find(yaml_find(root, "b"), "c");
    assert_string_equal(c->text, "2");
    assert_true(c->quoted);
    assert_int_equal(c->line, 3);
    assert_int_equal(yaml_find(root, "b")->line, 2);       /* of its key */
    const struct yaml_node *d = c->next;
    assert_int_equal(d->kind, YAML_LIST);
    assert_string_equal(d->first->next->text, "y");
    assert_null(d->first->next->next);
    assert_false(yaml_find(root, "a")->quoted);
    assert_null(yaml_document(y, 1));
    assert_true(yaml_is_null(yaml_find(yaml_document(y, 2), "e")));
    assert_null(yaml_find(c, "x"));
    yaml_close(y);
}

static void what_could_grow_or_hide_is_refused(void **state)
{
    (void)state;
#define REFUSED(text, part) refused(text, sizeof text - 1, part)
    REFUSED("a: &x 1\nb: *x\n", "f:1: anchors");
    REFUSED("a: *x\n", "f:1: aliases");
    REFUSED("a: &x [1]\n", "anchors");
    REFUSED("a: !!str 1\n", "tags");
    REFUSED("a: 1\n\na: 2\n", "f:3: 'a' is here twice (first in line 1)");
    REFUSED("[1, 2]: 3\n", "a key must be a text");
    REFUSED("a: \"x\\0y\"\n", "NUL");
    REFUSED("a: [1\n", "f:2:");
    REFUSED("a: \xff\n", "f:");
    REFUSED("\tb: 1\n", "f:1:");
}

static void size_depth_and_number_are_bounded(void **state)
{
    (void)state;
    struct buf b = { 0 };
    for (int i = 0; i < YAML_DEPTH_MAX + 1; i++) buf_char(&b, '[');
    refused(b.data, b.size, "nested too deeply");
    buf_clear(&b);
    buf_char(&b, '[');
    for (int i = 0; i < YAML_NODES_MAX + 1; i++) buf_text(&b, "1,");
    buf_char(&b, ']');
    refused(b.data, b.size, "too many values");
    buf_clear(&b);
    for (int i = 0; i < YAML_DOCUMENTS_MAX + 1; i++) buf_text(&b, "---\na\n");
    refused(b.data, b.size, "too many documents");
    buf_clear(&b);
    while (b.size <= YAML_BYTES_MAX) buf_text(&b, "# a long comment\n");
    refused(b.data, b.size, "longer than");
    buf_release(&b);
}

static void any_cut_of_a_document_is_read_or_refused(void **state)
{
    (void)state;
    static const char text[] = "a: {b: [1, 'x', \"y\\n\"], c: |\n  block\n}\n--- \nd: >-\n e\n";
    for (size_t i = 0; i < sizeof text; i++) {
        struct yaml *y;
        struct why why;
        if (yaml_read(&y, text, i, "f", &why) == OK) yaml_close(y);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tree_keeps_order_lines_and_quotes),
        cmocka_unit_test(what_could_grow_or_hide_is_refused),
        cmocka_unit_test(size_depth_and_number_are_bounded),
        cmocka_unit_test(any_cut_of_a_document_is_read_or_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
