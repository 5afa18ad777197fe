"""Measurements that take minutes: run by `make bench-...`, write runs/bench/<name>.json, and assert nothing."""
