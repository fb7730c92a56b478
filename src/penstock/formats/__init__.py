"""Containers that both the weights and the text of a model are read from. No torch: front ends read them too."""
