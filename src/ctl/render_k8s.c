/* ctl/render_k8s.c - a service file as Kubernetes manifests: an MPIJob and what stands around it.
 *
 * The launcher's pod holds rank 0 and the HTTP gateway: they talk over a Unix socket, and the
 * Service selects that pod alone.  The workers' pods are equal, because an MPIJob has one worker
 * template; RANKSERVE_HOST_WORKERS says how many ranks go to each.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/render.h"

enum { LABEL_BYTES_MAX = 63, START_SECONDS = 900, GRACE_SECONDS_EXTRA = 30, PORT = 8000 };

#define HOME "/home/rankserve"
#define JOB_NAME "training.kubeflow.org/job-name"
#define JOB_ROLE "training.kubeflow.org/job-role"

/* "<name>-worker-<last>" must be one DNS label, and a Service's name starts with a letter. */
static enum err check_name(const struct render *r, struct why *why)
{
    char worker[400];
    const char *name = r->spec.name;
    const struct yaml_node *n = spec_find(&r->spec, "metadata.name");
    snprintf(worker, sizeof worker, "%s-worker-%llu", name,
             (unsigned long long)(r->pack.hosts - 1));
    if (strchr(name, '.') || !islower((unsigned char)name[0])) {
        return spec_bad(&r->spec, n, "metadata.name", why, "is '%.60s'; pods are named after it, "
                        "so it must be small letters, digits and '-', a letter first", name);
    }
    if (strlen(worker) > LABEL_BYTES_MAX) {
        return spec_bad(&r->spec, n, "metadata.name", why, "is too long: the last worker's pod "
                        "would be '%.80s', %zu characters of at most %d", worker, strlen(worker),
                        LABEL_BYTES_MAX);
    }
    return OK;
}

static void head(struct render *r, const char *version, const char *kind, const char *suffix)
{
    buf_print(&r->out, "---\napiVersion: %s\nkind: %s\nmetadata:\n  name: %s%s\n", version, kind,
              r->spec.name, suffix);
    if (*r->spec.name_space) {
        buf_print(&r->out, "  namespace: %s  # metadata.namespace\n", r->spec.name_space);
    }
    buf_print(&r->out, "  labels:\n    app.kubernetes.io/name: rankserve\n"
              "    app.kubernetes.io/instance: %s\n", r->spec.name);
}

static void config_map(struct render *r)
{
    head(r, "v1", "ConfigMap", "-service");
    buf_print(&r->out, "data:\n  # %s as it was given.\n  service.yaml: |\n", r->spec.base);
    bool start = true;
    for (size_t i = 0; i < r->spec.text.size; i++) {
        char c = r->spec.text.data[i];
        if (c == '\r') continue;
        if (start && c != '\n') buf_text(&r->out, "    ");
        buf_char(&r->out, c);
        start = c == '\n';
    }
    if (!start) buf_char(&r->out, '\n');
}

static void service(struct render *r)
{
    head(r, "v1", "Service", "-http");
    buf_print(&r->out, "spec:\n  # Rank 0's pod only: the gateway is beside it.\n  selector:\n"
              "    " JOB_NAME ": %s\n    " JOB_ROLE ": launcher\n"
              "  ports:\n  - name: http\n    port: %d\n    targetPort: http\n"
              "    protocol: TCP\n    appProtocol: http\n", r->spec.name, PORT);
}

static void disruption_budget(struct render *r)
{
    head(r, "policy/v1", "PodDisruptionBudget", "");
    buf_print(&r->out, "spec:\n  # Every pod of the job: one that goes does not come back into a "
              "running job.\n  minAvailable: %llu\n  selector:\n    matchLabels:\n"
              "      " JOB_NAME ": %s\n",
              (unsigned long long)r->pack.hosts + 1, r->spec.name);
}

static void network_policy(struct render *r)
{
    head(r, "networking.k8s.io/v1", "NetworkPolicy", "");
    buf_print(&r->out, "spec:\n  podSelector:\n    matchLabels:\n      " JOB_NAME ": %s\n"
              "  policyTypes: [Ingress]\n  ingress:\n  # Ranks talk to ranks of their job, on any "
              "port: ssh, MPI, doorbells.\n  - from:\n    - podSelector:\n        matchLabels:\n"
              "          " JOB_NAME ": %s\n", r->spec.name, r->spec.name);
    buf_print(&r->out, "  # Clients reach the gateway alone; the workers' pods listen to nobody "
              "else.\n  - ports:\n    - port: %d\n", PORT);
}

static void pod_security(struct render *r)
{
    buf_text(&r->out, "          securityContext:\n            runAsNonRoot: true\n"
             "            runAsUser: 1000\n            runAsGroup: 1000\n"
             "            fsGroup: 1000\n            seccompProfile:\n"
             "              type: RuntimeDefault\n");
}

static void container_security(struct render *r)
{
    buf_text(&r->out, "            securityContext:\n"
             "              allowPrivilegeEscalation: false\n"
             "              capabilities:\n                drop: [ALL]\n");
}

static void environment(struct render *r, const char *name, const char *value, const char *origin)
{
    buf_print(&r->out, "            - name: %s\n              value: \"%s\"  # %s\n", name, value,
              origin);
}

static void mounts(struct render *r, bool launcher)
{
    buf_text(&r->out, "            volumeMounts:\n"
             "            - name: shm\n              mountPath: /dev/shm\n");
    if (r->claim) {
        buf_text(&r->out, "            - name: models\n              mountPath: /models\n"
                 "              readOnly: true\n");
    }
    if (!launcher) return;
    buf_text(&r->out, "            - name: service\n              mountPath: /etc/rankserve\n"
             "              readOnly: true\n"
             "            - name: api-keys\n              mountPath: /run/rankserve/api-keys\n"
             "              readOnly: true\n");
    if (!*r->spec.config.redis) return;
    buf_text(&r->out, "            - name: redis\n              mountPath: /run/rankserve/redis\n"
             "              readOnly: true\n");
}

static void volumes(struct render *r, bool launcher)
{
    char origin[200];
    buf_text(&r->out, "          volumes:\n          # Open MPI's shared memory; a pod's own is "
             "64Mi, too little for many ranks.\n          - name: shm\n            emptyDir:\n"
             "              medium: Memory\n              sizeLimit: 256Mi\n");
    if (r->claim) {
        render_origin(r, "model", origin, sizeof origin);
        buf_print(&r->out, "          # %s\n          - name: models\n"
                  "            persistentVolumeClaim:\n              claimName: %s\n"
                  "              readOnly: true\n", origin, r->claim);
    }
    if (!launcher) return;
    buf_print(&r->out, "          - name: service\n            configMap:\n"
              "              name: %s-service\n"
              "          # Without this Secret, every client in the cluster may ask.\n"
              "          - name: api-keys\n            secret:\n"
              "              secretName: %s-api-keys\n              optional: true\n",
              r->spec.name, r->spec.name);
    if (!*r->spec.config.redis) return;
    render_origin(r, "redis", origin, sizeof origin);
    buf_print(&r->out, "          # What Redis asks for.  %s\n          - name: redis\n"
              "            secret:\n              secretName: %s-redis\n"
              "              optional: true\n", origin, r->spec.name);
}

static void probes(struct render *r)
{
    buf_print(&r->out, "            # 200 once a request can be served; a large model loads for "
              "minutes.\n            startupProbe:\n              httpGet:\n"
              "                path: /health\n                port: http\n"
              "              periodSeconds: 2\n              failureThreshold: %d\n",
              START_SECONDS / 2);
    buf_text(&r->out, "            readinessProbe:\n              httpGet:\n"
             "                path: /health\n                port: http\n"
             "              periodSeconds: 2\n              failureThreshold: 1\n"
             "            # Not /health: a draining service is to finish, not to be killed.\n"
             "            livenessProbe:\n              tcpSocket:\n                port: http\n"
             "              periodSeconds: 10\n              failureThreshold: 6\n"
             "            lifecycle:\n              preStop:\n                exec:\n"
             "                  # Until the Service has dropped this pod; then TERM drains.\n"
             "                  command: [/bin/sleep, \"5\"]\n");
}

static void launcher_options(struct render *r)
{
    char origin[200];
    buf_print(&r->out, "            args:\n            - '--listen=0.0.0.0:%d'  # the Service's "
              "port\n", PORT);
    render_options(r, "            - ", false, "listen uds endpoint-file api-key-file run-dir");
    render_origin(r, "drain-timeout-s", origin, sizeof origin);
    buf_text(&r->out, "            env:\n");
    struct buf list = { 0 };
    pack_list(&r->pack, &list);
    environment(r, "RANKSERVE_HOST_WORKERS", list.data, "workers of each pod, in rank order");
    buf_release(&list);
}

static void launcher(struct render *r)
{
    char origin[200];
    render_origin(r, "drain-timeout-s", origin, sizeof origin);
    buf_print(&r->out, "    Launcher:\n      replicas: 1\n      restartPolicy: OnFailure\n"
              "      template:\n        metadata:\n          labels:\n"
              "            app.kubernetes.io/name: rankserve\n"
              "            app.kubernetes.io/instance: %s\n"
              "            llm-d.ai/engine-type: vllm  # its metrics have vLLM's names\n"
              "        spec:\n          automountServiceAccountToken: false\n"
              "          # %s, and %d s\n          terminationGracePeriodSeconds: %llu\n",
              r->spec.name, origin, GRACE_SECONDS_EXTRA,
              (unsigned long long)r->spec.config.drain_timeout_s + GRACE_SECONDS_EXTRA);
    pod_security(r);
    buf_print(&r->out, "          containers:\n          - name: rank0\n            image: %s\n"
              "            command: [/usr/local/bin/rankserve-launch]\n", r->image);
    launcher_options(r);
    buf_print(&r->out, "            ports:\n            - name: http\n"
              "              containerPort: %d\n              protocol: TCP\n", PORT);
    probes(r);
    container_security(r);
    buf_text(&r->out, "            # Rank 0 and the gateway compute nothing.\n"
             "            resources:\n              requests:\n                cpu: 500m\n"
             "                memory: 1Gi\n              limits:\n                memory: 2Gi\n");
    mounts(r, true);
    volumes(r, true);
}

static void worker_resources(struct render *r)
{
    const struct need *n = &r->pack.host;
    char bytes[32];
    struct buf text = { 0 };
    if (n->gpus) {
        buf_print(&text, "                nvidia.com/gpu: %llu\n", (unsigned long long)n->gpus);
    }
    if (n->memory) {
        buf_print(&text, "                memory: %s\n",
                  bytes_text(n->memory, bytes, sizeof bytes));
    }
    if (n->cpu) {
        buf_print(&text, "                cpu: %llum\n", (unsigned long long)n->cpu);
    }
    if (!text.size) return;
    for (int i = 0; i < POOL_COUNT; i++) {
        const struct pool *p = &r->spec.pools[i];
        if (!p->replicas || !p->from) continue;
        buf_print(&r->out, "            # %s: spec.serving.%s.resources, %s:%u\n", p->name, p->from,
                  r->spec.base, p->line);
    }
    buf_print(&r->out, "            resources:\n              requests:\n%s"
              "              limits:\n%s", text.data, text.data);
    buf_release(&text);
}

static void worker(struct render *r)
{
    struct buf packed = { 0 };
    pack_text(&r->pack, "pod", &packed);
    buf_print(&r->out, "    Worker:\n      # %s\n      replicas: %llu\n"
              "      restartPolicy: OnFailure\n      template:\n        metadata:\n"
              "          labels:\n            app.kubernetes.io/name: rankserve\n"
              "            app.kubernetes.io/instance: %s\n        spec:\n"
              "          automountServiceAccountToken: false\n", packed.data,
              (unsigned long long)r->pack.hosts, r->spec.name);
    buf_release(&packed);
    pod_security(r);
    buf_print(&r->out, "          # A lost node should cost few workers.\n"
              "          topologySpreadConstraints:\n          - maxSkew: 1\n"
              "            topologyKey: kubernetes.io/hostname\n"
              "            whenUnsatisfiable: ScheduleAnyway\n            labelSelector:\n"
              "              matchLabels:\n                " JOB_NAME ": %s\n"
              "                " JOB_ROLE ": worker\n"
              "          containers:\n          - name: worker\n            image: %s\n"
              "            command: [/usr/local/bin/rankserve-worker]  # sshd on 2222\n"
              "            # Not the model: the launcher starts only when workers are ready.\n"
              "            readinessProbe:\n              tcpSocket:\n                port: 2222\n"
              "              periodSeconds: 2\n", r->spec.name, r->image);
    container_security(r);
    worker_resources(r);
    mounts(r, false);
    volumes(r, false);
}

static void mpi_job(struct render *r)
{
    head(r, "kubeflow.org/v2beta1", "MPIJob", "");
    buf_text(&r->out, "spec:\n  mpiImplementation: OpenMPI\n"
             "  # For the operator's host file, of which only the names are used.\n");
    buf_print(&r->out, "  slotsPerWorker: %llu\n", (unsigned long long)r->pack.most);
    buf_text(&r->out, "  # Rank 0 is on the launcher through a host file of our own, and gets no "
             "GPU this way.\n  runLauncherAsWorker: false\n"
             "  launcherCreationPolicy: WaitForWorkersReady\n"
             "  sshAuthMountPath: " HOME "/.ssh\n  runPolicy:\n    cleanPodPolicy: Running\n"
             "    # Failures count over the whole life of the job, and this is a service.\n"
             "    backoffLimit: 1000000\n  mpiReplicaSpecs:\n");
    launcher(r);
    worker(r);
}

enum err render_k8s(struct render *r, struct why *why)
{
    enum err e = check_name(r, why);
    if (e != OK) return e;
    size_t image = strspn(r->image, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                          "._-/:@");
    if (r->image[image] || !image) {
        return why_set(why, ERR_FORMAT, "--image is '%.80s'; it must be NAME:TAG", r->image);
    }
    buf_print(&r->out, "# %s on Kubernetes (MPI Operator v2beta1), made by `rankservectl render` "
              "from %s.\n# Apply with: kubectl apply --server-side -f -\n"
              "# Keys that clients must send, one a line:\n"
              "#   kubectl create secret generic %s-api-keys --from-file=keys=FILE\n",
              r->spec.name, r->spec.base, r->spec.name);
    if (*r->spec.config.redis) {
        buf_print(&r->out, "# What Redis asks for, as far as it does, in files of these names: "
                  "password, ca.crt, tls.crt,\n# tls.key; and kv.key, the secret that those who "
                  "share have in common:\n"
                  "#   kubectl create secret generic %s-redis --from-file=FOLDER\n", r->spec.name);
    }
    config_map(r);
    service(r);
    disruption_budget(r);
    network_policy(r);
    mpi_job(r);
    return OK;
}
