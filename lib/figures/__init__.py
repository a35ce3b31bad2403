"""Figures of plain numbers in one style, and widgets. They know neither models nor studies."""
