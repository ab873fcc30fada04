"""The commands of the command line `classifier NAME`, one module each. Begin with `application`, which loads them."""
