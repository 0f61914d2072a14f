"""Image metrics, cost of rendering, figures."""
