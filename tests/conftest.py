"""Set-up of all tests: shapes and types in `lib` checked at run time, one thread, fixed examples in CI."""

import os

import hypothesis
import jaxtyping
import jaxtyping._decorator
import pytest
import torch


class TypeCheckError(jaxtyping.TypeCheckError, ValueError):
    """What the import hook raises here. Being a ValueError too, `pytest.raises(ValueError)` holds
    whether a wrong shape is caught by the annotations or by the function itself."""


jaxtyping._decorator.TypeCheckError = TypeCheckError
jaxtyping.install_import_hook("lib", "beartype.beartype")

# Before any @triton.jit is reached: without a GPU the kernels run on CPU tensors.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

torch.set_num_threads(1)

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def untyped():
    """Run-time type checks switched off, so that a function's own refusals are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny random models, by the names that a profile's `models` gives."""
    import tiny  # after the hook, since it imports lib

    return tiny.save_models(tmp_path_factory.mktemp("models"))
