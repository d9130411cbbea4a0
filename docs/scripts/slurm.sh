#!/bin/bash
# A pretraining on two nodes of eight GPUs, one task for each GPU, that goes on by itself when its time is over:
#
#     sbatch docs/scripts/slurm.sh /data/images --recipe moco-v2 --workspace /shared/mocoembed
#
# Images and workspace must be on a disk that every node sees. Change the next lines to what your cluster has; options
# given to sbatch override them. Without --batch-size and --lr the recipe's are for the whole batch.
#
#SBATCH --job-name=mocoembed
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#
# Every task gets USR1 two minutes before the end; they save, and leave with status 138.
#SBATCH --signal=USR1@120
# Slurm itself starts the job again when it was preempted or lost a node; the log goes on in the same file.
#SBATCH --requeue
#SBATCH --open-mode=append

# The task of local rank i takes GPU i of its node, or with --gpus-per-task its own.
# Without --kill-on-bad-exit the others would wait for a task that has died until --timeout.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    mocoembed pretrain "$@"
status=$?

if [ "$status" -eq 138 ]; then
    echo "Saved; the job goes back into the queue."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
