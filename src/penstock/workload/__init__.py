"""Traces of requests: reading, generating, replaying them against a server, and reporting what the clients saw."""
