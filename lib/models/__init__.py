"""The three models, tiny or published, behind the same calls."""

import transformers

# diffusers asks for image processors that need torchvision and warns; no model here uses them.
transformers.logging.set_verbosity_error()
