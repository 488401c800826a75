"""Rules by which the kernels keep caches, whatever hardware they are for."""

LRU, LFU, BELADY, LOOKAHEAD, STATIC = range(5)
