# slurm/env.sh - a site's settings for rankserve jobs.  Copy it, change it, and source it before sbatch
# (or from the modulefile).  What is commented out is the default.
# shellcheck shell=sh

# Where endpoint files and API keys go: every node and the login node must see it.
# export RANKSERVE_JOBS=$HOME/.rankserve/jobs

# The network that MPI uses, a name or CIDR: without it Open MPI tries all, and waits for those that
# lead nowhere.
# export RANKSERVE_INTERFACE=ib0

# What starts the ranks.  mpirun survives the death of ranks and nodes; srun is for sites where only
# srun may start processes, and then one dead rank ends the job.
# export RANKSERVE_STARTER=srun

# A file of API keys, one a line, mode 0600.  Without it each job makes a key of its own, beside its
# endpoint file.
# export RANKSERVE_API_KEY_FILE=$HOME/.rankserve/keys

# Every option of `rankservectl up --help` is a variable too, for example:
# export RANKSERVE_MODEL=/shared/models/model.gguf   # the same path on all nodes
# export RANKSERVE_THREADS=16                        # compute threads of each worker
# export RANKSERVE_UDS=$TMPDIR/rankserve.sock        # also a Unix socket: file permissions protect it
# export RANKSERVE_DRAIN_TIMEOUT_S=120               # how long streams may run on at the end

# rankserve-launch sets these for Open MPI; a value of yours stays:
#   OMPI_MCA_btl=self,vader,tcp      transports that survive the loss of a peer
#   OMPI_MCA_pml=ob1                 the same (UCX does not)
#   OMPI_MCA_mpi_yield_when_idle=0   ranks sleep in epoll; yielding would cost their latency
#   OMPI_MCA_plm_slurm_args=--no-kill   a lost node must not end the steps of the others
#   OMPI_MCA_hwloc_base_binding_policy=none   compute threads may use all cores of their node
