"""Scores servers by how long their queue takes to halve."""
