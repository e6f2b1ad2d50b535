"""The claims experiment: what is true of the method, measured on Rooms."""
