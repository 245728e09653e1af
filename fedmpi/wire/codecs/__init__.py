"""Lossless codecs, one file each; `base` holds their protocol and registry."""
