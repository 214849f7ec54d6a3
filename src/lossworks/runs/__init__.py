"""Runs: units of work with a name, a seed and a result; an engine does them, and a journal keeps the results."""
