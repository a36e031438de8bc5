#!/bin/bash
# Train on many machines under Slurm: sbatch examples/slurm.sh. Not run here: only how its variables are read is tested.
#
# Each task is a worker; the command is that of one machine. Slurm sends SIGTERM two minutes before the time is up: the
# run then writes a checkpoint and ends with 143, and the job goes back into the queue, where the same command goes on.
#SBATCH --job-name=resnet50
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --distribution=block
#SBATCH --gpus-per-task=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120

srun --kill-on-bad-exit=1 keras-resnet train --recipe imagenet-paper \
	--data /data/imagenet/train --validation /data/imagenet/val --run "runs/$SLURM_JOB_NAME"
code=$?
# 143: asked to end; 137: a worker did not start or was lost. Anything else will not get better by itself.
if [ $code -eq 143 ] || [ $code -eq 137 ]; then
	scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
