"""Objectives inside other libraries' trainers: one module a library, imported only when it is asked for."""
