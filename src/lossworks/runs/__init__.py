"""Runs: units of work with a name, a seed and a result, done by an engine, journaled, and gone on with after a stop."""
