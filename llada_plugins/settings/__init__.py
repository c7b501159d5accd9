"""The settings and scores that authors published, by name. It knows no model and no harness."""
