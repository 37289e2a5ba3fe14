"""Signals that ask a process to end. Imports nothing, so that handlers are there before all else."""

#: Names of those that end a process unless it handles them; not all exist on every system.
ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGBREAK")
