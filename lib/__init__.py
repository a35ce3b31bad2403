"""Two studies of multimodal backdoors: the library behind the notebooks."""
