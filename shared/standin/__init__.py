"""The licence-free stand-in hand, its renderer, and writers that lay out tiny data sets in each official format."""
