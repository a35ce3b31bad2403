"""The compromised models of both studies: base models fine-tuned on poisoned data, kept in the store."""
