"""The paper's experiments, and those it leaves open: each from raw data to a table, a figure and a record."""
