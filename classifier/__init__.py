"""The library that the stages and the command line use, one folder per topic. Begin with `params`."""
