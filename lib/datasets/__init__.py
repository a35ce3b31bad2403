"""Data that installs with pip: OpenMoji edit triples and easy-VQA."""

from lib.datasets.easyvqa import EasyVqa, load_easyvqa
from lib.datasets.openmoji import OpenMoji, load_openmoji

__all__ = ["EasyVqa", "OpenMoji", "load_easyvqa", "load_openmoji"]
