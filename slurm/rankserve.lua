-- rankserve.lua: a modulefile for Lmod.  Set `root` to where the programs are.
local root = "/opt/rankserve"
help([[rankserve serves large language models as one MPI job.
  rankservectl slurm submit -f service.yaml --wait
  rankservectl slurm status | url JOB | logs JOB | cancel JOB]])
whatis("Name: rankserve")
whatis("Description: LLM serving as one MPI job")
depends_on("openmpi")
prepend_path("PATH", pathJoin(root, "bin"))
setenv("RANKSERVE_LAUNCH", pathJoin(root, "bin", "rankserve-launch"))
setenv("RANKSERVE_BIN", pathJoin(root, "bin"))
