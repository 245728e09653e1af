"""The coders of a set of k out of n positions, one file a coder; `fedmpi.wire.codecs.positions` chooses among them."""
