"""Tests of edge/update."""
