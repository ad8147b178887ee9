"""The process and its machine: displays, signals, cores, memory, and files read as data."""
