/* model/inspect.c - prints a model file; see inspect.h. */
#include "model/inspect.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "model/quant.h"

enum { NAME_COLUMN_MAX = 48, TYPE_NUMBERS = 64 };

static int wider(int width, const char *name)
{
    size_t n = strlen(name);
    return n > (size_t)width ? (n < NAME_COLUMN_MAX ? (int)n : NAME_COLUMN_MAX) : width;
}

static void print_keys(const struct gguf *g, struct buf *out)
{
    int width = 0;
    for (uint32_t i = 0; i < gguf_key_count(g); i++) width = wider(width, gguf_key_at(g, i));
    for (uint32_t i = 0; i < gguf_key_count(g); i++) {
        buf_print(out, "%-*s  ", width, gguf_key_at(g, i));
        gguf_key_print(g, i, out);
        buf_char(out, '\n');
    }
}

static void print_shape(const struct gguf_tensor *t, struct buf *out)
{
    char text[96] = "(";
    for (uint32_t i = t->dim_count; i-- > 0;) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%" PRIu64 "%s", t->dims[i], i ? ", " : ")");
    }
    buf_print(out, "%-18s", text);
}

static void print_tensors(const struct gguf *g, struct buf *out)
{
    int width = 0;
    for (uint32_t i = 0; i < gguf_tensor_count(g); i++) {
        width = wider(width, gguf_tensor_at(g, i)->name);
    }
    for (uint32_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        buf_print(out, "%-*s  %-7s  ", width, t->name, tensor_type_name(t->type));
        print_shape(t, out);
        buf_print(out, "  %12" PRIu64 "\n", t->bytes);
    }
}

static void print_totals(const struct gguf *g, struct buf *out)
{
    uint64_t bytes[TYPE_NUMBERS] = { 0 }, all = 0;
    uint32_t count[TYPE_NUMBERS] = { 0 };
    for (uint32_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        CHECK((uint32_t)t->type < TYPE_NUMBERS);
        bytes[t->type] += t->bytes;
        all += t->bytes;
        count[t->type]++;
    }
    buf_print(out, "%" PRIu32 " keys, %" PRIu32 " tensors, %" PRIu64 " bytes of weights\n",
              gguf_key_count(g), gguf_tensor_count(g), all);
    for (int type = 0; type < TYPE_NUMBERS; type++) {
        if (!count[type]) continue;
        bool computable = tensor_type_computable((enum tensor_type)type);
        buf_print(out, "  %-7s  %6" PRIu32 " tensors  %14" PRIu64 " bytes%s\n",
                  tensor_type_name((enum tensor_type)type), count[type], bytes[type],
                  computable ? "" : "  (cannot be served)");
    }
}

void model_inspect(const struct gguf *g, struct buf *out)
{
    print_keys(g, out);
    buf_char(out, '\n');
    if (gguf_tensor_count(g)) {
        print_tensors(g, out);
        buf_char(out, '\n');
    }
    print_totals(g, out);
}
