"""Boards that are reached over TVM's RPC: code compiled here is loaded, run and timed there."""
