/* ctl/tool_inspect.c - rankservectl inspect: a model file's parameters and tensors. */
#include <stdio.h>

#include "ctl/ctl.h"
#include "model/gguf.h"
#include "model/inspect.h"

int ctl_inspect(int argc, char **argv)
{
    static const struct flag flags[] = { { NULL } };
    if (flags_read(flags, "inspect FILE", argc, argv) != 1) die("inspect: name one file");
    struct gguf *g;
    struct why why;
    if (gguf_open(&g, argv[1], &why) != OK) die("%s", why.text);
    struct buf out = { 0 };
    model_inspect(g, &out);
    fwrite(out.data, 1, out.size, stdout);
    buf_release(&out);
    gguf_close(g);
    return 0;
}
