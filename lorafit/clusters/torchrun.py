"""torchrun: a shell script that is run on every machine.

Of https://docs.pytorch.org/docs/stable/elastic/run.html.
"""

from lorafit.clusters.job import PORT, Job
from lorafit.clusters.target import Expression, Target, render
from lorafit.errors import UserError

_TEMPLATE = r"""#!/usr/bin/env bash
# Written by lorafit << version >>:
#   << job.command | comment >>
<% if job.nodes > 1 %>
# Run it on each of << job.nodes >> machines with that machine's number, from 0. All of them must
# see the same recipe, data, output directory and caches:
#   bash FILE 0<< "" if job.rendezvous else " node1:" ~ port >>
#   bash FILE 1<< "" if job.rendezvous else " node1:" ~ port >>
# Machine 0 listens there. LOCAL_ADDR=… names an address of this machine that the others reach,
# where its host name does not.
<% endif %>
<% if job.environment %>
# Read from the environment: << job.environment | join(", ") >>.
<% endif %>
set -e
cd << job.directory | sh >>
<% for line in job.setup %>
<< line >>
<% endfor %>
set -u
<% if job.cpus %>
export OMP_NUM_THREADS=<< job.cpus >>
<% endif %>
<% if job.nodes > 1 %>
NODE_RANK=${1:?the number of this machine, from 0 to << job.nodes - 1 >>}
RENDEZVOUS=${2:-<< job.rendezvous >>}
: "${RENDEZVOUS:?HOST:PORT of machine 0}"
IS_HOST=$([ "$NODE_RANK" = 0 ] && echo true || echo false)
<% endif %>

# torchrun starts failed ranks again whatever their exit code, and ends with 1 for any. On SIGTERM
# it gives them 30 s to finish their step and commit.
exec << torchrun | words >> \
<% if job.nodes > 1 %>
    ${LOCAL_ADDR:+--local-addr "$LOCAL_ADDR"} \
<% endif %>
    -m << train | words >>
"""


def _text(job: Job) -> str:
    if job.time_s is not None and job.restarts:
        raise UserError("torchrun would start ranks again that ended because their time was over",
                        "--time with --restarts", "leave one of them out, or start it with lorafit "
                        "train --nodes … --restarts …")
    words = ["torchrun", f"--nnodes={job.nodes}", f"--nproc-per-node={job.processes}",
             f"--max-restarts={job.restarts}", "--rdzv-backend=c10d", f"--rdzv-id={job.name}"]
    if job.nodes > 1:
        words += [Expression('--rdzv-endpoint="$RENDEZVOUS"'),
                  Expression('--rdzv-conf="is_host=$IS_HOST"')]
    else:
        words += ["--rdzv-endpoint=localhost:0"]  # a port that is free
    deadline = [] if job.stop_after_s is None else ["--stop-after", f"{job.stop_after_s}s"]
    return render(_TEMPLATE, job, port=PORT, torchrun=words, train=job.train(*deadline))


TORCHRUN = Target(
    "torchrun",
    frozenset({"restarts", "time_s", "cpus", "rendezvous", "setup", "environment"}),
    _text, is_script=True, next_step="bash {file}",
)
