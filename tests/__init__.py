"""A package, so that another distribution's folder of this name is not imported in its place."""
