"""Checks that run before a release, called by `.ci/run`."""
