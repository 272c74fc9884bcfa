"""Making videos of a list of prompts, and the papers' figures on any folder of videos."""
