"""All that loses information, on the device where the tensor lies: top-k, casts, rounding to few bits, error memory."""
