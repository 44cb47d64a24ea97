/* ctl/validate.c - rankservectl validate: checks documents offline; starts nothing.
 *
 * First every document against its CRD's schema, with all faults; then the service as `up` reads
 * it, which knows what holds between fields.
 */
#include <stdio.h>
#include <string.h>

#include "common/config.h"
#include "ctl/ctl.h"
#include "ctl/schema.h"

enum { FAULTS_SHOWN_MAX = 50 };

struct validation {
    const char *file;
    unsigned faults, services, documents;
};

static void report(void *ctx, unsigned line, const char *path, const char *text)
{
    struct validation *v = ctx;
    if (v->faults++ >= FAULTS_SHOWN_MAX) return;
    fprintf(stderr, "%s:%u: %s %s\n", v->file, line, path, text);
}

static const char *word(const struct yaml_node *root, const char *key)
{
    const struct yaml_node *n = yaml_find(root, key);
    return n && n->kind == YAML_SCALAR ? n->text : "";
}

/* A kind of Kubernetes itself: its server knows the schema, we do not. */
static void check_foreign(struct validation *v, const struct yaml_node *root)
{
    const struct yaml_node *metadata = yaml_find(root, "metadata");
    const char *kind = word(root, "kind"), *version = word(root, "apiVersion");
    bool ours = strncmp(version, "serving.llm-d.ai/", 17) == 0 ||
                strcmp(kind, "InferenceService") == 0 || strcmp(kind, "CachePolicy") == 0 ||
                strcmp(kind, "MPIJob") == 0;
    if (!*kind) report(v, root->line, "kind", "is missing");
    else if (!*version) report(v, root->line, "apiVersion", "is missing");
    else if (ours) {
        report(v, root->line, "apiVersion", "and kind must be serving.llm-d.ai/v1alpha1 "
               "InferenceService or CachePolicy, or kubeflow.org/v2beta1 MPIJob");
    } else if (!*word(metadata, "name")) {
        report(v, root->line, "metadata.name", "is missing");
    } else {
        printf("ok, without its schema: %s %s\n", kind, word(metadata, "name"));
    }
}

static void check_document(struct validation *v, const struct schemas *s,
                           const struct yaml_node *root)
{
    v->documents++;
    if (root->kind != YAML_MAP) {
        report(v, root->line, "document", "must hold fields");
        return;
    }
    if (!schemas_know(s, root)) {
        check_foreign(v, root);
        return;
    }
    if (schemas_check(s, root, report, v)) return;
    bool service = strcmp(word(root, "kind"), "InferenceService") == 0;
    v->services += service;
    if (!service) {
        printf("ok: %s %s\n", word(root, "kind"), word(yaml_find(root, "metadata"), "name"));
    }
}

static const char *file_of(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "-f=", 3) == 0) return argv[i] + 3;
        if (strncmp(argv[i], "--file=", 7) == 0) return argv[i] + 7;
        bool flag = strcmp(argv[i], "-f") == 0 || strcmp(argv[i], "--file") == 0;
        if (flag && i + 1 < argc) return argv[i + 1];
    }
    return NULL;
}

/* As `up` would read it: with the environment and the other options of the command line. */
static void check_service(int argc, char **argv)
{
    struct config c;
    struct why why;
    if (config_load(&c, PROGRAM_CTL, argc, argv, NULL, &why) != OK) die("%s", why.text);
    printf("ok: %llu prefill, %llu decode, %llu both, %llu spares; model %s\n",
           (unsigned long long)c.prefill, (unsigned long long)c.decode,
           (unsigned long long)c.both, (unsigned long long)c.spares,
           *c.model ? c.model : "(the default)");
}

int ctl_validate(int argc, char **argv)
{
    struct validation v = { .file = file_of(argc, argv) };
    struct why why;
    struct yaml *y;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) check_service(argc, argv); /* prints it */
    }
    if (!v.file) die("validate: say which file: rankservectl validate -f service.yaml");
    if (yaml_read_file(&y, v.file, &why) != OK) die("%s", why.text);
    struct schemas *s = schemas_open();
    for (size_t i = 0; i < yaml_document_count(y); i++) {
        const struct yaml_node *root = yaml_document(y, i);
        if (root) check_document(&v, s, root);
    }
    if (!v.documents) report(&v, 1, "document", "is missing: the file is empty");
    if (!v.faults && v.services) check_service(argc, argv);
    if (v.faults > FAULTS_SHOWN_MAX) {
        fprintf(stderr, "%s: %u faults in all\n", v.file, v.faults);
    }
    schemas_close(s);
    yaml_close(y);
    return v.faults ? 1 : 0;
}
