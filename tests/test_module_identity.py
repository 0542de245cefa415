"""What a file that was cut off is known by: all that the gradients of a module depend on."""

import copy
import functools
import operator
import os
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import nftk
from nftk.ops import tangent_gram_torch
from nftk.tangent import resumable
from nftk.tangent.modules.identity import Identity


def told(model, output_fn=None):
    """All that is told, and each tensor that is given."""
    given = []
    identity = Identity(lambda x: given.append(x.tolist()) or x)
    return [identity.of_module(model), identity.of(output_fn), given]


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def written(source, **names):
    """What a cell of a notebook leaves: its names, which the next run of the cell replaces."""
    space = {"__name__": "__main__", "nn": nn, "torch": torch} | names
    exec(textwrap.dedent(source), space)
    return space


def of_class(body, **names):
    """A model whose class has this body, next to these globals."""
    source = f"class Net(nn.Module):\n{textwrap.indent(textwrap.dedent(body), '    ')}"
    space = written(source, **names)
    model = space["Net"]()
    torch.manual_seed(0)
    model.inner = nn.Linear(6, 3)
    return model.double()


def enclosing(k):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Linear(6, 3).double()

        def forward(self, x):
            return k * self.inner(x)

    return Net()


def function(body, **names):
    return written(f"def f(out):\n{textwrap.indent(textwrap.dedent(body), '    ')}", **names)["f"]


def tripled(module, inputs, output):
    return 3 * output


def alike(module, inputs, output):
    return output


def hooked(hook, **settings):
    model = linear()
    model[0].register_forward_hook(hook, **settings)
    return model


def before(hook, **settings):
    model = linear()
    model[0].register_forward_pre_hook(hook, **settings)
    return model


def back(hook):
    model = linear()
    model[1].register_full_backward_hook(hook)
    return model


def any_arguments(module, *arguments):
    return None


class Scale:
    """A hook with an attribute, or with a slot."""

    def __init__(self, by):
        self.by = by

    def __call__(self, module, inputs, output):
        return self.by * output


class Slotted:
    __slots__ = ("_by", "by")

    def __init__(self, by):
        self.by = by

    def __call__(self, out):
        return self.by * out


class Private:
    __slots__ = ("__by",)

    def __init__(self, by):
        self.__by = by

    def __call__(self, out):
        return self.__by * out


class Calling:
    """Goes on to what those below it define."""

    def __call__(self, out):
        return self.go(out)


class Doubling(Calling):
    def go(self, out):
        return 2 * out


class Halving(Calling):
    def go(self, out):
        return out / 2


# one name and one look for both
Halving.__qualname__ = Doubling.__qualname__ = "Calls"


def keyword(k):
    def f(out, *, k=k):
        return k * out

    return f


class Bound:
    def __init__(self, k):
        self.k = k

    def f(self, out):
        return self.k * out


class Buffered(nn.Module):
    def __init__(self, shift):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(6, 3).double()
        self.register_buffer("shift", torch.full((3,), shift, dtype=torch.float64), persistent=False)

    def forward(self, x):
        return self.inner(x) + self.shift * self.inner(2 * x)


def circular(k):
    first, second = Bound(k), Bound(0.0)
    first.other, second.other = second, [first]
    return types.MethodType(lambda self, out: self.other[0].k * out, second)


def marked(k):
    def f(out):
        return f.k * out

    f.k = k
    return f


def cutting(part):
    return lambda out: out[:, part]


def reached(hook):
    model = linear()
    model[0].weight.register_hook(hook)
    return model


def frozen(*names):
    model = linear()
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def tied(really):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
    model[1].weight = model[0].weight if really else nn.Parameter(model[0].weight.detach().clone())
    return model


def module_of(source):
    found = types.ModuleType("helpers")
    exec(textwrap.dedent(source), found.__dict__)
    return found


def patched(body):
    """A module of torch whose forward somebody has replaced, on a class of that name in torch."""
    kind = type("Linear", (nn.Linear,), {"__module__": "torch.nn.modules.linear"})
    kind.forward = written(f"def forward(self, x): return {body}")["forward"]
    torch.manual_seed(0)
    return kind(6, 3).double()


FORWARD = "def forward(self, x): return "
# one change each: two models, and functions of their outputs where these are what differs
MODELS = {
    "forward hook": (lambda: hooked(alike), lambda: hooked(tripled)),
    "forward hook, unnamed": (lambda: hooked(lambda m, i, o: o), lambda: hooked(lambda m, i, o: 3 * o)),
    "forward hook or none": (linear, lambda: hooked(tripled)),
    "hook's attribute": (lambda: hooked(Scale(2)), lambda: hooked(Scale(3))),
    "forward pre-hook": (lambda: before(lambda m, i: i), lambda: before(lambda m, i: (3 * i[0],))),
    "pre-hook with kwargs": (lambda: before(any_arguments), lambda: before(any_arguments, with_kwargs=True)),
    "hook with kwargs": (lambda: hooked(any_arguments), lambda: hooked(any_arguments, with_kwargs=True)),
    "hook always called": (lambda: hooked(any_arguments), lambda: hooked(any_arguments, always_call=True)),
    "backward hook": (lambda: back(any_arguments), lambda: back(lambda m, i, o: (3 * i[0],))),
    "forward": (
        lambda: of_class(FORWARD + "self.inner(x).tanh()"),
        lambda: of_class(FORWARD + "self.inner(x).sin()"),
    ),
    "class attribute": (
        lambda: of_class("k = 1.0\n" + FORWARD + "self.k * self.inner(x)"),
        lambda: of_class("k = 3.0\n" + FORWARD + "self.k * self.inner(x)"),
    ),
    "class attribute, a tensor": (
        lambda: of_class("k = torch.ones(3)\n" + FORWARD + "self.k * self.inner(x)"),
        lambda: of_class("k = torch.zeros(3)\n" + FORWARD + "self.k * self.inner(x)"),
    ),
    "static method": (
        lambda: of_class("@staticmethod\ndef act(x): return x.sin()\n" + FORWARD + "self.act(self.inner(x))"),
        lambda: of_class("@staticmethod\ndef act(x): return x.cos()\n" + FORWARD + "self.act(self.inner(x))"),
    ),
    "property": (
        lambda: of_class("@property\ndef k(self): return 1\n" + FORWARD + "self.k * self.inner(x)"),
        lambda: of_class("@property\ndef k(self): return 2\n" + FORWARD + "self.k * self.inner(x)"),
    ),
    "inherited method": (
        lambda: of_class(FORWARD + "self.act(x)", **{"nn": types.SimpleNamespace(Module=acting("sin"))}),
        lambda: of_class(FORWARD + "self.act(x)", **{"nn": types.SimpleNamespace(Module=acting("cos"))}),
    ),
    "class's closure": (lambda: enclosing(1.0), lambda: enclosing(3.0)),
    "class's global": (
        lambda: of_class(FORWARD + "K * self.inner(x)", K=torch.ones(3)),
        lambda: of_class(FORWARD + "K * self.inner(x)", K=torch.zeros(3)),
    ),
    "forward put into a class of torch": (lambda: patched("x @ self.weight.T"), lambda: patched("x @ -self.weight.T")),
    "buffer beside the state": (lambda: Buffered(0.0), lambda: Buffered(1.0)),
    "parameter's hook": (lambda: reached(lambda grad: grad), lambda: reached(lambda grad: 3 * grad)),
    "parameter that is frozen": (lambda: frozen("0.weight"), lambda: frozen("2.weight")),
    "one parameter or two": (lambda: tied(True), lambda: tied(False)),
}


def acting(name):
    return written(f"class Base(nn.Module):\n    def act(self, x): return self.inner(x).{name}()")["Base"]


FUNCTIONS = {
    "global tensor": (function("return K * out", K=torch.ones(3)), function("return K * out", K=torch.zeros(3))),
    "global list": (function("return K[0] * out", K=[1]), function("return K[0] * out", K=[2])),
    "global dictionary": (function("return K['k'] * out", K={"k": 1}), function("return K['k'] * out", K={"k": 2})),
    "global helper": (
        function("return g(out)", g=function("return out.sin()")),
        function("return g(out)", g=function("return out.cos()")),
    ),
    "helper's helper": (
        function("return g(out)", g=function("return h(out)", h=function("return out.sin()"))),
        function("return g(out)", g=function("return h(out)", h=function("return out.cos()"))),
    ),
    "global of a nested lambda": (
        function("return (lambda o: (lambda p: K * p)(o))(out)", K=1.0),
        function("return (lambda o: (lambda p: K * p)(o))(out)", K=3.0),
    ),
    "function of one's own module": (
        function("return m.act(out)", m=module_of("def act(out): return out.sin()")),
        function("return m.act(out)", m=module_of("def act(out): return out.cos()")),
    ),
    "slot": (Slotted(1.0), Slotted(3.0)),
    "private slot": (Private(1.0), Private(3.0)),
    "method that an inherited call goes on to": (Doubling(), Halving()),
    "attribute of a function": (marked(1.0), marked(3.0)),
    "keyword default": (keyword(1.0), keyword(3.0)),
    "method's object": (Bound(1.0).f, Bound(3.0).f),
    "cycle": (circular(1.0), circular(3.0)),
    "getter of C": (operator.itemgetter(slice(1)), operator.itemgetter(slice(2))),
    "wrapped by torch": (torch.enable_grad()(lambda o: o), torch.enable_grad()(lambda o: 2 * o)),
    "cached": (functools.lru_cache(lambda o: o.sin()), functools.lru_cache(lambda o: o.cos())),
    "slice": (cutting(slice(0, 1)), cutting(slice(1, 2))),
}


# what is refused today, at the end of an interrupted call
SEVERAL = {"per": "module", "reduction": "trace"}


class Stop(Exception):
    """Somebody's Ctrl-C."""


def stop(done, total):
    raise Stop


@pytest.fixture
def x():
    return torch.randn(60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def _many_tiles(monkeypatch):
    monkeypatch.setattr(resumable, "_PATIENCE", 0.0)
    for table in ("_TILE", "_TILE_TRACE"):
        monkeypatch.setattr(tangent_gram_torch, table, {"cpu": (8, 8)})


@pytest.mark.parametrize("name", MODELS)
def test_models_that_differ(name):
    first, second = MODELS[name]
    assert told(first()) == told(first())
    assert told(first()) != told(second())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_differ(name):
    first, second = FUNCTIONS[name]
    assert told(linear(), first) == told(linear(), first)
    assert told(linear(), first) != told(linear(), second)


def test_hooks_of_all_modules():
    want = told(linear())
    handle = nn.modules.module.register_module_forward_hook(tripled)
    try:
        assert told(linear()) != want
    finally:
        handle.remove()
    assert told(linear()) == want


def refused(first, second, x, folder):
    """Whether another call is not let into the files of the first, and that call itself is."""
    (model, output_fn), (other, other_fn) = first(), second()
    with pytest.raises(Stop):
        nftk.empirical_ntk(model, x, out=folder / "k", output_fn=output_fn, progress=stop, **SEVERAL)
    with pytest.raises(ValueError, match="with the network, inputs and settings it was begun with"):
        nftk.empirical_ntk(other, x, out=folder / "k", output_fn=other_fn, **SEVERAL)
    model, output_fn = first()
    nftk.empirical_ntk(model, x, out=folder / "k", output_fn=output_fn, **SEVERAL)
    project = nftk.tangent.project_tangents
    project(model, x, 4, per="module", out=folder / "p", output_fn=output_fn)
    model, output_fn = first()
    project(model, x, 4, per="module", out=folder / "p", output_fn=output_fn)
    with pytest.raises(ValueError, match="with the network and inputs it was begun with"):
        project(other, x, 4, per="module", out=folder / "p", output_fn=other_fn)


@pytest.mark.usefixtures("_many_tiles")
@pytest.mark.parametrize(
    "name", ["forward", "class's closure", "class attribute", "class's global", "inherited method"]
)
def test_a_file_of_another_model_is_refused(name, x, tmp_path):
    first, second = MODELS[name]
    refused(lambda: (first(), None), lambda: (second(), None), x, tmp_path)


@pytest.mark.usefixtures("_many_tiles")
@pytest.mark.parametrize(
    "name", ["global tensor", "global of a nested lambda", "slot", "global helper", "keyword default"]
)
def test_a_file_of_another_function_is_refused(name, x, tmp_path):
    first, second = FUNCTIONS[name]
    refused(lambda: (linear(), first), lambda: (linear(), second), x, tmp_path)


@pytest.mark.usefixtures("_many_tiles")
def test_a_file_of_another_hook_is_refused(x, tmp_path):
    first, second = MODELS["forward hook, unnamed"]
    refused(lambda: (first(), None), lambda: (second(), None), x, tmp_path)


def several():
    """Modules with something of their own in them, and a batch for each."""
    torch.manual_seed(0)
    rows, sequences = torch.randn(2, 6), torch.randn(2, 5, 6)
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Linear(6, 3))
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(6, 3), nn.ReLU()))
    return {
        "linear": (linear().float(), rows),
        "hooked": (hooked(Scale(2)).float(), rows),
        "closure": (enclosing(2.0).float(), rows),
        "patched": (patched("x @ self.weight.T").float(), rows),
        "norm": (nn.BatchNorm1d(6).eval(), rows),
        "lstm": (nn.LSTM(6, 4), sequences),
        "attention": (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).eval(), sequences),
        "fast attention": (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2).eval(),
            sequences,
        ),
        "weight_norm": (nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), rows),
        "old weight_norm": (old, rows),
        "spectral_norm": (nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)).eval(), rows),
        "traced": (traced, rows),
        "nftk": (nftk.NFTKMLP(6, [4], 3), rows),
    }


SAME = ["linear", "hooked", "closure", "patched", "norm", "lstm", "attention", "fast attention", "weight_norm",
    "old weight_norm", "spectral_norm", "traced", "nftk"]  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_a_copy_and_a_run_change_nothing(name):
    model, x = several()[name]
    want = told(model)
    if name != "old weight_norm":  # torch does not copy it
        assert told(copy.deepcopy(model)) == want
    other = several()[name][0]
    other.load_state_dict(model.state_dict())
    assert told(other) == want
    out = model(x)
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    with torch.no_grad():
        model(x)
    assert told(model) == want


def ending_on(model):
    return lambda out: out @ model[2].weight


def test_a_function_of_the_model_is_the_same_of_its_copy():
    model = linear()
    model.own = [model[0]]
    model[0].register_forward_hook(functools.partial(any_arguments))
    other = copy.deepcopy(model)
    assert told(model, ending_on(model)) == told(other, ending_on(other))
    with torch.no_grad():
        other[0].weight += 1
    assert told(model) != told(other)
    assert told(model, ending_on(model)) == told(model, ending_on(model))
    with torch.no_grad():
        other[2].weight += 1
    assert told(model, ending_on(model))[1] != told(model, ending_on(other))[1]


SCRIPT = """
import functools, random, re, sys
sys.path.insert(0, {folder!r})
import torch
from torch import nn
{ballast}
from test_module_identity import *

K, NAMES = torch.ones(3), {{"b", "a", "c", "d", "e", "f"}}
TABLE = {{"log": __import__("logging").getLogger("x"), "lock": __import__("threading").Lock(), "o": object()}}
KINDS = {{Scale, Slotted, Bound, Calling, Private, int, re.compile}}

def helper(out):
    return helper(out[1:]) if len(out) > 99 and "a" in {{"a", "b", "c", "d", "e", "f"}} else out * K

class Net(nn.Module):
    near = {{nn.ReLU, nn.Tanh, nn.Sigmoid}}
    table = TABLE
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(6, 3)
        self.kept, self.kinds = frozenset(NAMES), KINDS
        self.me = [self]
        self.random = random.Random(3)
        self.inner.register_forward_hook(self.hook)
    def hook(self, module, inputs, output):
        return [helper(o) for o in (output,) if NAMES][0]
    def forward(self, x):
        return self.inner(x)

def output_fn(out, *, names=NAMES):
    return functools.reduce(lambda a, b: a + helper(b), [out], TABLE and out)

print(told(Net(), output_fn))
"""


def test_another_process_tells_the_same(tmp_path):
    found = set()
    for seed, ballast in (
        (1, ""),
        (2, "held = [object() for i in range(999)]; nn.ReLU().register_forward_hook(print)"),
    ):
        path = tmp_path / f"run{seed}.py"
        path.write_text(SCRIPT.format(folder=str(Path(__file__).parent), ballast=ballast))
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(Path(nftk.__file__).parents[1])}
        command = [sys.executable, str(path)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert len(ran.stdout) > 60
        found.add(ran.stdout)
    assert len(found) == 1


def test_what_is_large_takes_no_time():
    big = nn.Sequential(*[nn.Linear(300, 300) for _ in range(300)])
    deep = []
    for _ in range(5000):
        deep = [deep]
    start = time.perf_counter()
    Identity(lambda x: x).of_module(big)
    took = time.perf_counter() - start
    assert took < 5, f"{took:.1f} s"
    # deeper than Python may recurse
    assert told(linear(), lambda out: out if deep else None)[1]
