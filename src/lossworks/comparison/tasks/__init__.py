"""What a data set asks for, one file a task: a new task is one new file here, and nothing else."""
