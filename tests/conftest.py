"""Set-up of all tests: shapes and types in `lib` checked at run time, one thread, fixed examples in CI."""

import os

import hypothesis
import jaxtyping
import jaxtyping._decorator
import pytest
import torch

# Modules that share what is costly stay in one process, one after another. These take longest and begin first, so that
# no process is left alone with them at the end.
LONGEST = (
    ("slow/test_notebooks", "slow/test_pipeline"),
    ("slow/test_paper_profile",),
    ("slow/test_processes", "slow/test_sharding"),
    ("studies/disp/test_defences",),
    ("runtime/test_shards",),
    ("studies/base_models/test_base_models",),
    ("studies/disp/test_purification",),
    ("studies/collapse/test_tables",),
    ("studies/disp/test_tables",),
    ("studies/disp/test_editor",),
    ("models/test_loading",),
    ("studies/disp/test_words",),
    ("slow/test_cluster",),
)


class TypeCheckError(jaxtyping.TypeCheckError, ValueError):
    """What the import hook raises here. Being a ValueError too, `pytest.raises(ValueError)` holds
    whether a wrong shape is caught by the annotations or by the function itself."""


jaxtyping._decorator.TypeCheckError = TypeCheckError
jaxtyping.install_import_hook("lib", "beartype.beartype")

# Before any @triton.jit is reached: without a GPU the kernels run on CPU tensors.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

torch.set_num_threads(1)

hypothesis.settings.register_profile("local", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def group(nodeid: str) -> tuple[int, str]:
    """The place of a test's module among the longest, and what names the modules that it stays with."""
    module = nodeid.split("::")[0].removeprefix("tests/").removesuffix(".py")
    return next(((k, each[0]) for k, each in enumerate(LONGEST) if module in each), (len(LONGEST), module))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: group(item.nodeid)[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process gets whole groups, in this order. (pytest 9.2 ignores how xdist 3.8 marks its own groups.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(nodeid)[1]

    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.fixture
def untyped():
    """Run-time type checks switched off, so that a function's own refusals are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of tiny random models, by the names that a profile's `models` gives; read only."""
    import tiny  # after the hook, since it imports lib

    return tiny.save_models(tmp_path_factory.mktemp("models"))
