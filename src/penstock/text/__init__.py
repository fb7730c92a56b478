"""Text on both sides of a model: tokenizing, chat templates, and detokenizing a stream. Imports penstock.core only."""
