/* ctl/flags.c - flags of the small subcommands; see ctl.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/suggest.h"
#include "ctl/ctl.h"

static void print_flags(const struct flag *flags, const char *usage)
{
    printf("usage: rankservectl %s\n", usage);
    for (const struct flag *f = flags; f->name; f++) {
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", f->name, f->metavar ? " " : "",
                 f->metavar ? f->metavar : "");
        printf("  %-26s %s\n", left, f->help);
    }
}

static _Noreturn void unknown_flag(const struct flag *flags, const char *command, const char *given)
{
    char name[80], tail[128];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(given, "="), given);
    struct suggest s = { .wrong = name + strspn(name, "-") };
    for (const struct flag *f = flags; f->name; f++) suggest_offer(&s, f->name);
    die("%s: unknown option %s%s", command, name, suggest_text(&s, "--", tail, sizeof tail));
}

static const struct flag *find_flag(const struct flag *flags, const char *argument)
{
    size_t bytes = strcspn(argument, "=");
    for (const struct flag *f = flags; f->name; f++) {
        if (strlen(f->name) == bytes - 2 && strncmp(f->name, argument + 2, bytes - 2) == 0) {
            return f;
        }
    }
    return NULL;
}

int flags_read(const struct flag *flags, const char *usage, int argc, char **argv)
{
    int words = 0;
    bool only_words = false;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (only_words || a[0] != '-' || !a[1]) {
            argv[++words] = argv[i];
            continue;
        }
        if (strcmp(a, "--") == 0) {
            only_words = true;
            continue;
        }
        if (strcmp(a, "--help") == 0 || strcmp(a, "-h") == 0) {
            print_flags(flags, usage);
            exit(0);
        }
        const struct flag *f = a[1] == '-' ? find_flag(flags, a) : NULL;
        const char *equals = strchr(a, '=');
        if (!f || (f->given && equals)) unknown_flag(flags, argv[0], a);
        if (f->given) {
            *f->given = true;
        } else if (equals) {
            *f->value = equals + 1;
        } else if (i + 1 < argc) {
            *f->value = argv[++i];
        } else {
            die("%s: --%s needs a value", argv[0], f->name);
        }
    }
    return words;
}
