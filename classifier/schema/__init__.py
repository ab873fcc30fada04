"""What classifier/params.py is built from: sections, search ranges, the reading of YAML, and messages."""
