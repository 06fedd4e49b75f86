"""What training achieved: quality by goal. Judges are handed in; nothing here knows how a model was trained."""
