"""Files become records (sources), records become tokens (chat). Knows nothing of models, devices or losses."""
