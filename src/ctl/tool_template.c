/* ctl/tool_template.c - rankservectl template: what a chat request becomes before the model. */
#include <stdio.h>
#include <time.h>

#include <jansson.h>

#include "common/limits.h"
#include "ctl/ctl.h"
#include "model/template.h"

static void set_default(json_t *object, const char *name, json_t *value)
{
    if (json_object_get(object, name)) json_decref(value);
    else json_object_set_new(object, name, value);
}

int ctl_template(int argc, char **argv)
{
    static const struct flag flags[] = { { NULL } };
    if (flags_read(flags, "template FILE.jinja < chat-request.json", argc, argv) != 1) {
        die("template: name one file; the request comes from standard input");
    }
    struct buf text = { 0 }, input = { 0 }, out = { 0 };
    struct why why;
    struct template *t;
    json_error_t error;
    if (read_file(argv[1], TEMPLATE_BYTES_MAX, &text, &why) != OK) die("%s", why.text);
    if (template_open(&t, text.data, text.size, &why) != OK) die("%s: %s", argv[1], why.text);
    read_input(&input, HTTP_BODY_BYTES_MAX);
    json_t *request = json_loadb(input.data, input.size, JSON_REJECT_DUPLICATES, &error);
    if (!request) die("standard input:%d:%d: %s", error.line, error.column, error.text);
    if (!json_is_object(request)) die("standard input: not a JSON object");
    set_default(request, "add_generation_prompt", json_true());
    set_default(request, "bos_token", json_string(""));
    set_default(request, "eos_token", json_string(""));
    if (template_render(t, request, time(NULL), &out, &why) != OK) die("%s", why.text);
    if (out.size) fwrite(out.data, 1, out.size, stdout);
    json_decref(request);
    template_close(t);
    buf_release(&out);
    buf_release(&input);
    buf_release(&text);
    return 0;
}
