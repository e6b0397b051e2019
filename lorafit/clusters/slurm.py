"""Slurm: a batch script, one task for each GPU.

Of sbatch(1), srun(1) and scontrol(1) as SchedMD documents them: https://slurm.schedmd.com/sbatch.html.
"""

from lorafit.clusters.job import ENDS_BY_ITSELF, Job
from lorafit.clusters.target import Expression, Target, render
from lorafit.errors import DEADLINE_EXIT_CODE, UserError

_TEMPLATE = r"""#!/usr/bin/env bash
#SBATCH --job-name=<< job.name >>
#SBATCH --nodes=<< job.nodes >>
#SBATCH --ntasks-per-node=<< job.processes >>
#SBATCH --gpus-per-node=<< (job.gpu_type ~ ":" if job.gpu_type else "") ~ job.processes >>
<% if job.cpus %>
#SBATCH --cpus-per-task=<< job.cpus >>
<% endif %>
<% if job.memory_gib %>
#SBATCH --mem=<< job.memory_gib >>G
<% endif %>
<% if job.partition %>
#SBATCH --partition=<< job.partition >>
<% endif %>
<% if job.account %>
#SBATCH --account=<< job.account >>
<% endif %>
<% if job.time_s %>
#SBATCH --time=<< limit >>
# A checkpoint, in case a step or an evaluation takes longer than what --stop-after leaves.
#SBATCH --signal=USR1@<< job.margin_s // 2 >>
<% else %>
# The partition's own limit: commit a checkpoint and end before it comes.
#SBATCH --signal=TERM@300
<% endif %>
# After a failure of a machine or a preemption, Slurm puts the job into the queue again.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Written by lorafit << version >>:
#   << job.command | comment >>
# Submit it with sbatch. The recipe, its data, the output directory and the caches must be the same
# files on every machine.
<% if job.environment %>
# Read from the environment that sbatch is called in: << job.environment | join(", ") >>.
<% endif %>
set -e
cd << job.directory | sh >>
<% for line in job.setup %>
<< line >>
<% endfor %>
set +e -u

<% if job.time_s %>
STOP_AFTER_S=<< job.stop_after_s >>  # of the job's << job.time_s >> s
RUN=<< job.run_dir | sh >>
<% endif %>
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
<% if job.cpus %>
export SRUN_CPUS_PER_TASK=<< job.cpus >>  # srun no longer takes it from sbatch
<% endif %>

# A task that fails takes the others with it (--kill-on-bad-exit). One that ends as all of them do,
# after a signal, at its deadline or on bad input, only notes its code, and leaves them the time to.
ended="$PWD/.<< job.name >>-$SLURM_JOB_ID.ended"
export ended
task='trap : TERM INT USR1; "$@"; code=$?
case $code in << codes | join("|") >>) echo "$code" > "$ended"; exit 0 ;; *) exit "$code" ;; esac'

<% if job.time_s %>
newest() { cat "$RUN/checkpoints/latest" 2> /dev/null; }
before=$(newest)
<% endif %>
for attempt in $(seq 0 << job.restarts >>); do
    rm -f "$ended"
<% if job.time_s %>
    left=$((STOP_AFTER_S - SECONDS))
    if ((left <= 0)); then
        code=<< deadline >>
        break
    fi
<% endif %>
    srun << srun | words >> \
        bash -c "$task" task \
        << train | words >>
    code=$?
    if ((code == 0)) && [ -s "$ended" ]; then
        code=$(cat "$ended")
        break
    fi
    ((code == 0)) && break
    echo "attempt $attempt ended with exit code $code" >&2
done
rm -f "$ended"

<% if job.time_s %>
# << deadline >>: the time is over, and there is more to do. What was cancelled is not queued again.
if ((code == << deadline >>)); then
    if [ "$(newest)" != "$before" ]; then
        scontrol requeue "$SLURM_JOB_ID" && exit 0
    fi
    echo "not queued again: no checkpoint was committed in the job's time" >&2
fi
<% endif %>
exit "$code"
"""


def _text(job: Job) -> str:
    if job.image and job.setup:
        raise UserError("an image brings its own environment: lines of the batch script do not "
                        "reach into it", "--setup with --image", "leave one of them out")
    srun, inside = ["--kill-on-bad-exit=1"], []
    if job.image.endswith(".sif"):
        inside = ["apptainer", "exec", "--nv", "--bind", job.directory, "--pwd", job.directory,
                  job.image]
    elif job.image:  # NVIDIA's pyxis: https://github.com/NVIDIA/pyxis
        srun += [f"--container-image={job.image}",
                 f"--container-mounts={job.directory}:{job.directory}",
                 f"--container-workdir={job.directory}"]
    deadline = [] if job.time_s is None else ["--stop-after", Expression('"${left}s"')]
    return render(_TEMPLATE, job, limit=_limit(job.time_s or 0), codes=ENDS_BY_ITSELF,
                  deadline=DEADLINE_EXIT_CODE, srun=srun,
                  train=[*inside, *job.train(*deadline)])


def _limit(time_s: int) -> str:
    """90061 → 1-01:01:01."""
    days, rest = divmod(time_s, 86_400)
    return f"{days}-{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


SLURM = Target(
    "slurm",
    frozenset({"restarts", "time_s", "memory_gib", "cpus", "gpu_type", "partition", "account",
               "image", "setup", "environment"}),
    _text, is_script=True, next_step="sbatch {file}",
)
