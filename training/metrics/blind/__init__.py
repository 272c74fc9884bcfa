"""People's eyes: a page that shows two models' videos and not whose they are, and the count of the votes."""
