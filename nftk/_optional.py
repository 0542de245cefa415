"""Optional packages: imported when first needed, and named with the command that installs them."""

import importlib
from types import ModuleType


def require(module: str, *, purpose: str, extra: str) -> ModuleType:
    """Import and return an optional module, or raise ImportError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        package = module.split(".")[0].replace("sklearn", "scikit-learn")
        raise ImportError(f"nftk: {purpose} needs {package}; run `pip install 'nftk[{extra}]'`") from error
