"""Networks: how each is built, saved and loaded."""
