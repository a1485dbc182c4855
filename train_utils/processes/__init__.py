"""Processes of a run -> one World; a single process is a world of size one."""
