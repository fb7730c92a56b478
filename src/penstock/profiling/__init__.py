"""`penstock profile`: what steps take on this machine, measured and fitted."""
