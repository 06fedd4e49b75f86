"""The schemas of preference data: one frozen entry for each, in one registry. A new schema is a file here and one entry."""
