/* ctl/validate.c - rankservectl validate: reads a service file as `up` does, starts nothing. */
#include <stdio.h>
#include <string.h>

#include "common/config.h"
#include "ctl/ctl.h"

int ctl_validate(int argc, char **argv)
{
    struct config c;
    struct why why;
    bool file = false;
    for (int i = 1; i < argc; i++) {
        file |= strcmp(argv[i], "-f") == 0 || strncmp(argv[i], "--file", 6) == 0 ||
                strncmp(argv[i], "-f=", 3) == 0 || strcmp(argv[i], "--help") == 0;
    }
    if (!file) die("validate: say which file: rankservectl validate -f service.yaml");
    if (config_load(&c, PROGRAM_CTL, argc, argv, NULL, &why) != OK) die("%s", why.text);
    printf("ok: %llu prefill, %llu decode, %llu both; model %s\n", (unsigned long long)c.prefill,
           (unsigned long long)c.decode, (unsigned long long)c.both,
           *c.model ? c.model : "(the default)");
    return 0;
}
