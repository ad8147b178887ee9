"""Many runs: sweeps, worker processes, Slurm."""
