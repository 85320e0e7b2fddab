"""What a digest reads: the caller's code by its source, and libraries, this one among them, by their versions."""

import pkgutil
from importlib import import_module

import pytest

import ppl_align
from ppl_align.core.digests import _is_library


@pytest.mark.parametrize("room", [module.name for module in pkgutil.iter_modules(ppl_align.__path__) if module.ispkg])
def test_every_room_of_the_package_is_a_library(room):
    """Read as the caller's own code, each function would be parsed anew for every digest of a run."""
    found = import_module(f"ppl_align.{room}")
    assert found.__file__ is not None

    def function() -> None: ...

    function.__module__ = found.__name__
    assert _is_library(function)


def test_code_of_the_caller_is_not_a_library():
    assert _is_library(pytest.raises)
    assert _is_library(import_module)
    assert not _is_library(test_code_of_the_caller_is_not_a_library)
