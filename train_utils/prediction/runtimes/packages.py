"""Optional packages by name, each with a clear line where it is missing (requirements-export.txt)."""

import importlib
from types import ModuleType

from backbone.errors import InputError


def optional_package(name: str, needed_by: str) -> ModuleType:
    """Imports a package; raises InputError, which says what needs it and how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{needed_by} needs {name} ({error}): pip install -r requirements-export.txt") from error
