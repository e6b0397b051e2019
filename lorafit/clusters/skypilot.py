"""SkyPilot: a task, https://docs.skypilot.co/en/latest/reference/yaml-spec.html."""

import posixpath

from lorafit.clusters.job import PORT, Job
from lorafit.clusters.target import Expression, Target, render
from lorafit.errors import UserError

_MOUNT = "/mnt/lorafit"

_TEMPLATE = r"""# Written by lorafit << version >>:
#   << job.command | comment >>
# Start it where it was written for, in << job.directory | comment >>: what is in there is copied to
# each machine.
#   sky jobs launch FILE<% for name in job.environment %> --secret << name >><% endfor +%>
<% if not job.volume %>
# Checkpoints are on the machine's own disk, and gone with it: --volume keeps them.
<% endif %>
name: << job.name | yaml >>
num_nodes: << job.nodes >>
workdir: .

resources:
  accelerators: << (job.gpu_type ~ ":" ~ job.processes) | yaml >>
<% if job.cpus %>
  cpus: << (job.cpus * job.processes) >>+
<% endif %>
<% if job.memory_gib %>
  memory: << job.memory_gib >>+
<% endif %>
<% if job.image %>
  image_id: << ("docker:" ~ job.image.removeprefix("docker:")) | yaml >>
<% endif %>
  # Machines that were taken away are replaced in any case.
  job_recovery:
    max_restarts_on_errors: << job.restarts >>
<% if job.environment %>

# Null: the values come from the environment of the command above, and stand in no file.
secrets:
<% for name in job.environment %>
  << name >>: null
<% endfor %>
<% endif %>
<% if job.volume %>

# All machines see it: sky volumes ls.
volumes:
  << mount >>: << job.volume | yaml >>

envs:
  XDG_CACHE_HOME: << mount >>/.cache
<% endif %>

setup: |
<% for line in job.setup %>
  << line >>
<% endfor %>
  command -v lorafit > /dev/null || {
    echo "lorafit is not installed here: say how with --setup, or use an --image that has it" >&2
    exit 1
  }

run: |
<% for line in job.setup %>
  << line >>
<% endfor %>
  exec << train | words >>
"""


def _text(job: Job) -> str:
    if not job.gpu_type:
        raise UserError("SkyPilot looks for machines by their kind of GPU", "--gpu-type",
                        "name it, for example --gpu-type H100")
    if job.nodes > 1 and not job.volume:
        raise UserError(f"{job.nodes} machines need an output directory that all of them see",
                        "--volume", "name a volume of SkyPilot: sky volumes apply makes one")
    more = ["--num-processes", Expression('"$SKYPILOT_NUM_GPUS_PER_NODE"')]
    if job.nodes > 1:
        more += ["--nodes", Expression('"$SKYPILOT_NUM_NODES"'),
                 "--node-rank", Expression('"$SKYPILOT_NODE_RANK"'), "--rendezvous",
                 Expression(f'"$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"')]
    if job.volume:
        kept = posixpath.join(_MOUNT, job.run_dir)
        more = ["--set", f"output.dir={kept}", *more]
    return render(_TEMPLATE, job, mount=_MOUNT, train=job.train(*more))


SKYPILOT = Target(
    "skypilot",
    frozenset({"restarts", "memory_gib", "cpus", "gpu_type", "image", "volume", "setup",
               "environment"}),
    _text, is_script=False, next_step="sky jobs launch {file}",
)
