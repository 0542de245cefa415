"""What the mended interpreter of tests/emulation.py promises the tests that use it."""

import inspect

import torch
from triton.runtime import interpreter

from nftk.ops import readout


def test_globals_are_read_by_one_program_at_a_time(grid, monkeypatch):
    """Rewriting a function adds to the globals that others go through: dictionary changed size during iteration."""
    grid.order = "together"
    exec_, found = interpreter.FunctionRewriter._compile_and_exec, []
    lock = inspect.getclosurevars(interpreter._patch_lang).nonlocals["rewriting"]

    def watched(self, transformed):
        found.append(lock._is_owned())
        return exec_(self, transformed)

    monkeypatch.setattr(interpreter.FunctionRewriter, "_compile_and_exec", watched)
    monkeypatch.setattr(interpreter.InterpretedFunction, "rewritten_fn", {})
    states = [torch.randn(200, 20) for _ in range(3)]
    readout(states, torch.randn(4, 60), torch.rand(4, 3), backend="triton")
    assert len(found) > 1
    assert all(found)


def test_programs_that_run_together_rewrite_their_functions_one_at_a_time(grid, monkeypatch):
    """Python's parser is no good in two threads at once (3.11: SystemError, AST constructor recursion depth)."""
    grid.order = "together"
    inside, most = 0, 0
    rewrite_ast = interpreter.FunctionRewriter.rewrite_ast

    def watched(self):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        found = rewrite_ast(self)
        inside -= 1
        return found

    monkeypatch.setattr(interpreter.FunctionRewriter, "rewrite_ast", watched)
    monkeypatch.setattr(interpreter.InterpretedFunction, "rewritten_fn", {})
    states = [torch.randn(200, 20) for _ in range(3)]
    readout(states, torch.randn(4, 60), torch.rand(4, 3), backend="triton")
    assert grid.launches
    assert most == 1
