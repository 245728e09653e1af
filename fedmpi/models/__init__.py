"""Models by name. Each file registers its own with their settings; `registry.build_model` finds them."""
