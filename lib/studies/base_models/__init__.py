"""The base models that the studies start from: trained by `make base`, and measured."""
