"""Who owns which memory: block pools, the prefix index, state groups, and `Memory` over all of them."""
