"""Objectives inside other libraries' trainers: one module per library, imported only when it is used."""
