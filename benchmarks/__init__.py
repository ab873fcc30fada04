"""What measures speed against other ways to train the same net, on real data: `make bench`."""
