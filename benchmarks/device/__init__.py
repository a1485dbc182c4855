"""What a GPU sees of this project: launches and waits, counted without one; and a script for where there is one."""
