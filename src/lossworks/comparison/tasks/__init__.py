"""The tasks, one file each; a task says what a data set asks for. To add a task, add one file here and nothing else."""
