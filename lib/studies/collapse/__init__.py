"""Backdoor modality collapse (arXiv 2603.06508): which trigger carries the backdoor of an editor, and of an MDLM."""
