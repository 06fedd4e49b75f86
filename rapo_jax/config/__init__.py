"""A run's configuration: the typed tree with its defaults, the YAML files it is read from, and its constraints."""
