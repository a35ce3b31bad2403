"""Two studies of multimodal backdoors: the library behind the notebooks."""

import sys

if sys.platform == "win32":
    raise ImportError("platform is 'win32': lib must run on Linux or macOS, and on Windows inside WSL.")
