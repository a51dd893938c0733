"""Shipped functions against recorded outputs of the published code."""
