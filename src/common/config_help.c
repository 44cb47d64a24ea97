/* common/config_help.c - --help, made from the option table. */
#include <stdlib.h>
#include <string.h>

#include "common/config_table.h"

enum { HELP_INDENT = 36, HELP_WIDTH = 98 };

static void print_wrapped(const char *text, int column, FILE *out)
{
    while (*text) {
        int word = (int)strcspn(text, " ");
        if (column + word + 1 > HELP_WIDTH && column > HELP_INDENT) {
            fprintf(out, "\n%*s", HELP_INDENT, "");
            column = HELP_INDENT;
        }
        fprintf(out, "%s%.*s", column > HELP_INDENT ? " " : "", word, text);
        column += word + (column > HELP_INDENT);
        text += word;
        while (*text == ' ') text++;
    }
    fputc('\n', out);
}

static void print_choices(const char *choices, struct buf *out)
{
    for (const char *at = choices; *at; at++) buf_char(out, *at == ' ' ? '|' : *at);
}

static void print_row(const struct option *o, FILE *out)
{
    struct buf left = { 0 }, right = { 0 };
    if (o->kind == OPTION_SWITCH) {
        buf_print(&left, "  --[no-]%s", o->name);
    } else {
        buf_print(&left, "  --%s ", o->name);
        if (o->metavar) buf_text(&left, o->metavar);
        else print_choices(o->choices, &left);
    }
    buf_text(&right, o->help);
    bool zero = o->zero_word && strcmp(o->initial, "0") == 0;
    if (*o->initial) buf_print(&right, " [%s]", zero ? o->zero_word : o->initial);
    bool fits = left.size + 1 < HELP_INDENT;
    fprintf(out, "%-*s%s", HELP_INDENT, left.data, fits ? "" : "\n");
    if (!fits) fprintf(out, "%*s", HELP_INDENT, "");
    print_wrapped(right.data, HELP_INDENT, out);
    buf_release(&left);
    buf_release(&right);
}

void config_help(enum program program, FILE *out)
{
    static const char *const usage[] = {
        [PROGRAM_RANKSERVE] = "mpirun -np 1+WORKERS rankserve [-f service.yaml] [options]",
        [PROGRAM_GATEWAY] = "rankserve-gateway [-f service.yaml] [options]",
        [PROGRAM_CTL] = "rankservectl up [-f service.yaml] [options]",
    };
    fprintf(out, "usage: %s\n\n", usage[program]);
    fputs("Settings come from, later wins: defaults, -f service.yaml, --config FILE, environment\n"
          "(--max-model-len is RANKSERVE_MAX_MODEL_LEN), these options (--name VALUE or\n"
          "--name=VALUE; counts may end in k, m, g = powers of 1000, K, M, G = of 1024):\n\n"
          "  -f, --file FILE                   an InferenceService document, as for Kubernetes\n"
          "  --config FILE                     settings as --print-config prints them\n"
          "  --print-config                    print all settings and exit\n"
          "  --version, -h, --help             print and exit\n",
          out);
    size_t count;
    const struct option *o = option_table(&count);
    const char *group = "";
    for (size_t i = 0; i < count; i++) {
        if (!(o[i].programs & program)) continue;
        if (strcmp(group, o[i].group) != 0) fprintf(out, "\n%s:\n", o[i].group);
        group = o[i].group;
        print_row(&o[i], out);
    }
}
