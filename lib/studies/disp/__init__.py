"""DiSP (arXiv 2602.22246) and what it is compared with, on the MDLM and on the editor."""
