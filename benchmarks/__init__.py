"""Speed and agreement, ours beside what a user would otherwise run. `make bench` runs all; see `harness`."""
