"""Signed bundles for machines that nobody stands beside: releases, and the two slots that they are installed into."""
