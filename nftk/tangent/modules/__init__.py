"""Tangents of any module: what its parameters are used for, seen in one run, and differentiated example by example."""
