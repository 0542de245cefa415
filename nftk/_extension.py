"""nftk._C, the compiled parts: what of them this installation has, and why not the rest.

Asked once, at import (2 ms), because torch.compile cannot trace the questions.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nftk._C import BuildInfo

_AGAIN = "run `pip install .` in nftk's source"


def _load() -> "tuple[BuildInfo | None, str | None]":
    """What nftk._C was built by and for, or why it is not there."""
    try:
        built: BuildInfo = importlib.import_module("nftk._C").build_info()
    except ModuleNotFoundError:
        # csrc/build_extension.py leaves it
        note = Path(__file__).with_name("_C_missing.txt")
        if note.exists():
            return None, f"nftk was installed without nftk._C: {note.read_text().strip()}"
        return None, f"nftk._C was never built; {_AGAIN}"
    except (ImportError, AttributeError) as error:
        return None, f"nftk._C does not load ({error}); {_AGAIN}"
    return built, None


BUILT, NO_CPP = _load()
NO_CUDA = NO_CPP
if BUILT is not None and not BUILT["cuda"]:
    NO_CUDA = f"nftk._C was built without CUDA: {BUILT['why_no_cuda']}"


def not_for(capability: tuple[int, int]) -> str | None:
    """Return None where nftk._C has code for a GPU of this compute capability, else a sentence."""
    names = BUILT["architectures"] if BUILT is not None else []
    if any(_serves(name, capability) for name in names):
        return None
    number = "{}{}".format(*capability)
    return (
        f"nftk._C was built for {', '.join(names)}, and this GPU is {number}; "
        f"run `NFTK_CUDA_ARCHS={number} NFTK_BUILD_CUDA=1 pip install .` in nftk's source"
    )


def _serves(name: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture runs on a GPU."""
    generation = divmod(int(name.removesuffix("+PTX").rstrip("af")), 10)
    if name.endswith("+PTX"):
        return capability >= generation
    if name.endswith("a"):
        return capability == generation
    return capability[0] == generation[0] and capability[1] >= generation[1]
