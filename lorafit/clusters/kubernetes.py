"""Kubernetes: an Indexed Job and the Service by whose name its pods find each other.

Of https://kubernetes.io/docs/concepts/workloads/controllers/job/ and
https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/; batch/v1, no operator.
"""

from lorafit.clusters.job import ENDS_BY_ITSELF, PORT, Job
from lorafit.clusters.target import Expression, Target, render
from lorafit.errors import UserError

_MOUNT = "/workspace"
_ASKED = (130, 143)  # to stop by a signal: an eviction, which is no failure of the job

_TEMPLATE = r"""# Written by lorafit << version >>:
#   << job.command | comment >>
# kubectl apply -f FILE. The volume claim << claim >> must hold what is in
#   << job.directory | comment >>
# the recipe and its data; runs and caches are kept in it too. All pods write to it: ReadWriteMany
# where they are on several machines.
<% for name in job.environment %>
#   kubectl create secret generic << job.name >> --from-literal=<< name >>="$<< name >>"
<% endfor %>
<% if job.nodes > 1 %>
apiVersion: v1
kind: Service
metadata:
  name: << job.name >>
spec:
  clusterIP: None  # headless: a name for each pod
  publishNotReadyAddresses: true
  selector:
    job-name: << job.name >>
  ports:
    - name: rendezvous
      port: << port >>
---
<% endif %>
apiVersion: batch/v1
kind: Job
metadata:
  name: << job.name >>
spec:
  completions: << job.nodes >>
  parallelism: << job.nodes >>
  completionMode: Indexed
<% if job.time_s %>
  activeDeadlineSeconds: << job.time_s >>
<% endif %>
<% if job.nodes > 1 %>
  # << job.restarts >> for each pod: what ends one may end them all.
<% endif %>
  backoffLimit: << job.restarts * job.nodes >>
  podFailurePolicy:
    rules:
      # Bad input, numbers that are not finite, time that is over: trying again changes nothing.
      - action: FailJob
        onExitCodes:
          containerName: lorafit
          operator: In
          values: << codes >>
      # A pod that had to make way is replaced, and goes on from its checkpoint.
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
  template:
    spec:
      restartPolicy: Never  # podFailurePolicy wants it; the Job makes new pods
<% if job.nodes > 1 %>
      subdomain: << job.name >>
<% endif %>
      terminationGracePeriodSeconds: 600  # for a step, and for saving
<% if job.gpu_type %>
      nodeSelector:
        nvidia.com/gpu.product: << job.gpu_type | yaml >>
<% endif %>
      containers:
        - name: lorafit
          image: << job.image | yaml >>
          workingDir: << mount >>
          command:
            - bash
            - -c
            - |
              set -e
<% for line in job.setup %>
              << line >>
<% endfor %>
<% if job.nodes > 1 %>
              first=<< job.name >>-0.<< job.name >>
              for _ in $(seq 900); do  # until the first pod has a place, and so a name
                  getent hosts "$first" > /dev/null && break
                  sleep 2
              done
<% endif %>
              exec << train | words >>
          env:
            - name: XDG_CACHE_HOME
              value: << mount >>/.cache
<% if job.cpus %>
            - name: OMP_NUM_THREADS
              value: << (job.cpus | string) | yaml >>
<% endif %>
<% for name in job.environment %>
            - name: << name >>
              valueFrom:
                secretKeyRef:
                  name: << job.name >>
                  key: << name >>
                  optional: true
<% endfor %>
          resources:
            limits:
              nvidia.com/gpu: << job.processes >>
<% if job.cpus %>
              cpu: << job.cpus * job.processes >>
<% endif %>
<% if job.memory_gib %>
              memory: << job.memory_gib >>Gi
<% endif %>
          volumeMounts:
            - name: workspace
              mountPath: << mount >>
            - name: shared-memory
              mountPath: /dev/shm
      volumes:
        - name: workspace
          persistentVolumeClaim:
            claimName: << claim >>
        - name: shared-memory  # NCCL's, which needs more than the 64 MB that containers have
          emptyDir:
            medium: Memory
"""


def _text(job: Job) -> str:
    if not job.image:
        raise UserError("a pod needs an image in which lorafit is installed", "--image",
                        "name it, for example --image registry.example.org/lorafit:1")
    more = ["--num-processes", str(job.processes)]
    if job.restarts:
        more += ["--restarts", str(job.restarts)]
    if job.nodes > 1:
        more += ["--nodes", str(job.nodes), "--node-rank", Expression('"$JOB_COMPLETION_INDEX"'),
                 "--rendezvous", Expression(f'"$first:{PORT}"'),
                 "--rendezvous-timeout", "30m"]  # for images to be fetched
    if job.stop_after_s is not None:
        more += ["--stop-after", f"{job.stop_after_s}s"]
    codes = [code for code in ENDS_BY_ITSELF if code not in _ASKED]
    return render(_TEMPLATE, job, mount=_MOUNT, claim=job.volume or "lorafit", port=PORT,
                  codes=codes, train=job.train(*more))


KUBERNETES = Target(
    "kubernetes",
    frozenset({"restarts", "time_s", "memory_gib", "cpus", "gpu_type", "image", "volume", "setup",
               "environment"}),
    _text, is_script=False, next_step="kubectl apply -f {file}",
)
