"""From the command to a group of learners: the verb train, its cluster, jobs, and elastic groups."""
