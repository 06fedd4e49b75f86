"""What runs and evaluations left on disk, as one HTML page that a colleague can open. Loads no model and computes nothing anew."""
